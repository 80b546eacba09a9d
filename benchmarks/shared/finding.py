"""Findings: a study yields them, and `report` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.shared import storage


class Finding:
    """One part of the outcome of a study."""

    @property
    def missed(self) -> bool:
        """Whether it breaks a bound or misses a target: then the exit code is 1."""
        return False


@dataclass(frozen=True)
class Stored(Finding):
    """The study has written `results/<name>.json`."""

    name: str

    def read(self) -> dict[str, Any]:
        """The stored "environment" and "results"."""
        return storage.read(self.name)
