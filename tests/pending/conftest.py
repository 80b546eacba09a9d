"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.internals import _plan


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each trace moved in parts."""
    counts: list[int] = []
    start = _plan.Plan.start

    def counted(self: Any, clocks: Any) -> Any:
        counts.append(len(self.places))
        return start(self, clocks)

    monkeypatch.setattr(_plan.Plan, "start", counted)
    return counts
