"""The stored results of `speed`: each workload with the machine that measured it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.shared import machine, storage
from benchmarks.shared.finding import Verdict
from benchmarks.speed.targets import medians, verdicts
from benchmarks.timing.measuring import Row


def keep(name: str, workload_id: str, rows: list[Row], drifts: list[float]) -> None:
    """Stores the rows of a workload, beside those of the others.

    Args:
        name: "speed" or "speed-quick".
        workload_id: what was measured.
        rows: of all arms.
        drifts: how many times slower than at its best the machine was, before and
            after.
    """
    results = _results(name)
    results["workloads"][workload_id] = {
        "environment": machine.environment() | {"drift": drifts},
        "rows": [asdict(row) for row in rows],
    }
    storage.write(name, results)


def keep_extremes(name: str, lines: list[Verdict]) -> None:
    """Stores the targets on first calls and memory."""
    results = _results(name)
    results["extremes"] = {"environment": machine.environment(), "lines": lines}
    storage.write(name, results)


def is_fresh(name: str, workload_id: str) -> bool:
    """Whether the workload was measured with exactly this code."""
    return machine.is_fresh(_results(name)["workloads"].get(workload_id))


def rows(results: dict[str, Any]) -> list[Row]:
    """The rows of all workloads, from what is stored."""
    found = results["workloads"].values()
    return [Row(**row) for each in found for row in each["rows"]]


def targets(results: dict[str, Any]) -> list[Verdict]:
    """All targets, met or not, from what is stored."""
    lines = verdicts(medians(rows(results)), set(results["workloads"]))
    extremes = results.get("extremes", {"lines": []})["lines"]
    return [*lines, *((*line,) for line in extremes)]


def environments(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The machines and commits of the workloads, each once."""
    found: list[dict[str, Any]] = []
    for each in results["workloads"].values():
        here = {k: v for k, v in each["environment"].items() if k != "drift"}
        if here not in found:
            found.append(here)
    return found


def _results(name: str) -> dict[str, Any]:
    return storage.results_of(name, otherwise={"workloads": {}})
