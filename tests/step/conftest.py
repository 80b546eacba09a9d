"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.internals import _compile


@pytest.fixture
def compiled_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each traced walk was handed to XLA."""
    runs: list[bool] = []
    call = _compile.Runner.__call__

    def counted(self: Any, *args: Any) -> Any:
        result = call(self, *args)
        runs.append(self.use_xla)
        return result

    monkeypatch.setattr(_compile.Runner, "__call__", counted)
    return runs
