"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.internals import pending_tables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each trace moved in parts."""
    counts: list[int] = []
    enter = pending_tables.Tables.enter

    def counted(self: Any, values: Any, num_updates: Any, numbers: Any) -> Any:
        if self.plan.places:
            counts.append(len(self.plan.places))
        return enter(self, values, num_updates, numbers)

    monkeypatch.setattr(pending_tables.Tables, "enter", counted)
    return counts
