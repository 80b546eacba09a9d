"""Whatever stands in lists, tuples and dicts, a user sees what Keras's SGD shows.

Every two values of two fields of `structures.Row` meet in one of these rows at least.
They run eagerly, which is soonest done; `test_structures_graph` has graphs and XLA.
"""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "number, row", [pytest.param(i, row, id=row.id) for i, row in enumerate(ROWS)]
)
def test_row(
    number: int, row: Row, engagements: list[str], trained: dict[str, bool]
) -> None:
    sizes, saves = (4 if number % 2 else 1,), number % SAVED_EVERY == 0
    trained[row.id] = check(row, engagements, sizes, saves)


def test_four_rows_of_five_train(trained: dict[str, bool]) -> None:
    if len(trained) < len(ROWS):
        pytest.skip("not all rows were run")
    assert 60 <= len(trained) <= 100
    assert sum(trained.values()) >= 0.8 * len(trained)


@pytest.mark.parametrize("row", [row for row in COMMON if row.model == "functional"])
def test_the_old_fault_is_found(
    row: Row, engagements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert row in ROWS
    put_back_the_old_fault(monkeypatch)
    with pytest.raises(AssertionError, match="val_loss"):
        check(row, engagements)
