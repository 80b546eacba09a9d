"""Stored results: `results/<name>.json`, each with the machine that measured it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.shared import machine

RESULTS = machine.ROOT / "benchmarks" / "results"
_LIST = re.compile(r"\[[^][{}]*\]")  # of numbers or words: on one line


def path_of(name: str) -> Path:
    """The file of a name, whether it exists or not."""
    return RESULTS / f"{name}.json"


def write(name: str, results: Any) -> None:
    """Writes `results/<name>.json` with the environment in it."""
    RESULTS.mkdir(exist_ok=True)
    whole = {"environment": machine.environment(), "results": results}
    text = json.dumps(whole, indent=1)
    # A pass per line would make files of thousands of lines, and diffs nobody reads.
    text = _LIST.sub(lambda found: " ".join(found[0].split()), text)
    path_of(name).write_text(text + "\n")


def read(name: str) -> dict[str, Any]:
    """The "environment" and the "results" of `results/<name>.json`."""
    return json.loads(path_of(name).read_text())


def results_of(name: str, otherwise: Any) -> Any:
    """The stored results, or `otherwise` where nothing is stored."""
    return read(name)["results"] if path_of(name).exists() else otherwise
