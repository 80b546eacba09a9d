"""Whatever stands in lists, tuples and dicts, a user sees what Keras's SGD shows.

Every two values of two fields of `structures.Row` meet in one of these rows at least.
They run eagerly, which is soonest done; `test_structures_graph` has graphs and XLA.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.structures import (
    MODELS,
    VALUES,
    Row,
    check,
    keras_warns,
    pairwise,
    put_back_the_old_fault,
)
from tests.support.tiers import tiered_rows

pytestmark = keras_warns

# Public programs give models their one output in a list, and y as an array.
COMMON = [
    Row(model, outputs=outputs, y="tensor")
    for model in MODELS
    for outputs in ("list1", "tuple1")
]
ROWS = pairwise(VALUES, COMMON)
SAVED_EVERY = 15  # a save and a load take as long as all the rest


@pytest.fixture(scope="module")
def trained() -> dict[str, bool]:
    """Row -> whether Keras trains it."""
    return {}


def _parameters() -> list[Any]:
    """All rows; those of public programs run by default."""
    table = {row.id: (number, row) for number, row in enumerate(ROWS)}
    return tiered_rows(table, *(row.id for row in COMMON), unpack=True)


@pytest.mark.parametrize("number, row", _parameters())
def test_row(
    number: int, row: Row, engagements: list[str], trained: dict[str, bool]
) -> None:
    sizes, saves = (4 if number % 2 else 1,), number % SAVED_EVERY == 0
    trained[row.id] = check(row, engagements, sizes, saves)


@pytest.mark.matrix
def test_four_rows_of_five_train(trained: dict[str, bool]) -> None:
    if len(trained) < len(ROWS) - len(COMMON):
        pytest.skip("not all rows of the matrix were run")
    assert 45 <= len(trained) <= 100
    assert sum(trained.values()) >= 0.8 * len(trained)


@pytest.mark.parametrize("row", [row for row in COMMON if row.model == "functional"])
def test_the_old_fault_is_found(
    row: Row, engagements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert row in ROWS
    put_back_the_old_fault(monkeypatch)
    with pytest.raises(AssertionError, match="val_loss"):
        check(row, engagements)
