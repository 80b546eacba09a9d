"""Findings: a study yields them, and `report` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from benchmarks.shared import storage


class Finding:
    """One part of the outcome of a study."""

    keys: ClassVar[tuple[str, ...]] = ("workload",)  # fields that tell it from others

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The finding whose fields were stored as `values`."""
        return cls(**values)

    @property
    def missed(self) -> bool:
        """Whether it breaks a bound or misses a target: then the exit code is 1."""
        return False


Verdict = tuple[str, str, str, str, str]  # subject, figure, its value, bound, met


@dataclass(frozen=True)
class Verdicts(Finding):
    """The targets of a run, as they are stored and shown."""

    lines: list[Verdict]

    @property
    def missed(self) -> bool:
        """Whether a target is missed, or has no figure."""
        return any(line[-1].lower().startswith("no") for line in self.lines)


@dataclass(frozen=True)
class Stored(Finding):
    """The study has written `results/<name>.json`."""

    name: str

    def read(self) -> dict[str, Any]:
        """The stored "environment" and "results"."""
        return storage.read(self.name)
