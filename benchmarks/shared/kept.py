"""Findings that are stored one by one, each with its own date, machine and code.

A run that is stopped keeps the findings that it has. A later run of the others adds to
them, and a finding that is measured again takes the place of the old one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from benchmarks.shared import machine, storage
from benchmarks.shared.finding import Finding


def keep(name: str, found: Finding, drifts: list[float]) -> None:
    """Stores a finding in `results/<name>.json`, beside the others.

    Args:
        name: of the study.
        found: a dataclass whose fields go through JSON.
        drifts: how many times slower than at its best the machine was, before and
            after.
    """
    values: dict[str, Any] = asdict(cast(Any, found))
    row = {
        "key": [type(found).__name__, *(values[key] for key in found.keys)],
        "environment": machine.environment() | {"drift": drifts},
        "values": values,
    }
    rows = storage.results_of(name, otherwise=[])
    keys = [other["key"] for other in rows]
    if row["key"] in keys:
        rows[keys.index(row["key"])] = row
    else:
        rows.append(row)
    storage.write(name, rows)


def read(name: str, *kinds: type[Finding]) -> list[Any]:
    """The stored findings of these classes."""
    by_name = {kind.__name__: kind for kind in kinds}
    rows = storage.results_of(name, otherwise=[])
    return [
        by_name[row["key"][0]].of(row["values"])
        for row in rows
        if row["key"][0] in by_name
    ]


def environments(name: str) -> list[dict[str, Any]]:
    """Those of all stored findings."""
    return [row["environment"] for row in storage.results_of(name, otherwise=[])]
