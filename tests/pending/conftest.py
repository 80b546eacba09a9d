"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.internals import block_plan, context, lazy_tables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each trace moved in parts."""
    counts: list[int] = []
    enter = lazy_tables.Tables.enter

    def counted(self: Any, num_updates: Any, numbers: Any) -> Any:
        if self.places:
            counts.append(len(self.places))
        return enter(self, num_updates, numbers)

    monkeypatch.setattr(lazy_tables.Tables, "enter", counted)
    return counts


@pytest.fixture
def blocks_used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of kernels that wait in blocks, per trace: the last one counts."""
    counts: list[int] = []
    plan_blocks = context.plan_blocks

    def counted(*arguments: Any) -> Any:
        plan = plan_blocks(*arguments)
        counts.append(len(plan.places))
        return plan

    monkeypatch.setattr(context, "plan_blocks", counted)
    return counts


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of 2,048 entries wait, too, so that models of tests may be small."""

    def block_size(num_inputs: int, num_outputs: int, _: bool) -> int | None:
        return 64 if num_inputs * num_outputs >= 2_048 else None

    monkeypatch.setattr(block_plan, "block_size", block_size)
