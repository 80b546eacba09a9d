"""What a study yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.shared import storage


class Finding:
    """One part of what a study finds: `report` shows it as soon as it is there."""

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
