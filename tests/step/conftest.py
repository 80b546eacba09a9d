"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.internals import compiled


@pytest.fixture
def compiled_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each traced walk was handed to XLA."""
    runs: list[bool] = []
    run = compiled.run

    def counted(*args: Any) -> Any:
        result = run(*args)
        runs.append(result[1].use_xla)
        return result

    monkeypatch.setattr(compiled, "run", counted)
    return runs
