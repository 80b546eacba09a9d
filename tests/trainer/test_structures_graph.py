"""The rows of `test_structures_eager` in graphs, with arrays, XLA and a strategy.

The matrix has the cross of models, outputs and targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.structures import (
    CONTAINERS,
    MODELS,
    VALUES,
    Row,
    check,
    is_possible,
    keras_warns,
)

pytestmark = keras_warns

GRAPH = [
    Row(outputs="list1", y="tensor", mode="graph", data="arrays"),
    Row("nested", outputs="list1", y="tensor", mode="graph", data="arrays"),
    Row("caller", outputs="tuple1", y="tensor", mode="graph", metrics="flat"),
    Row("subclass", "dict2", "dict2", loss="dict", metrics="dict", mode="graph"),
    Row(outputs="list1", y="tensor", mode="xla", data="arrays", metrics="list"),
    Row(outputs="list1", y="tensor", mode="one_device", metrics="flat"),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in GRAPH])
def test_row(row: Row, engagements: list[str]) -> None:
    assert check(row, engagements, (1, 4), saves=row.mode != "one_device")


def _crossed() -> Iterator[Any]:
    # All other fields take turns, so that each meets many of these.
    fields = {
        name: itertools.cycle(values)
        for name, values in {
            **{n: VALUES[n] for n in ("inputs", "loss", "metrics", "weights")},
            "loss_weights": (False, False, True),
            "mode": ("graph", "eager", "graph", "one_device", "graph"),
            "data": ("arrays", "dataset"),
        }.items()
    }
    for model, outputs, y in itertools.product(
        MODELS, VALUES["outputs"], ("same", *CONTAINERS)
    ):
        for _ in range(30):  # until the turns come to a program that is possible
            row = Row(
                model, outputs=outputs, y=y, **{n: next(v) for n, v in fields.items()}
            )
            if is_possible(row):
                yield pytest.param(row, id=row.id)
                break


CROSSED = list(_crossed())


@pytest.fixture(scope="module")
def trained() -> dict[str, bool]:
    """Row -> whether Keras trains it."""
    return {}


@pytest.mark.matrix
@pytest.mark.parametrize("row", CROSSED)
def test_crossed_row(
    row: Row, engagements: list[str], trained: dict[str, bool]
) -> None:
    saves = row.mode != "one_device"
    trained[row.id] = check(row, engagements, (1, 4), saves)


@pytest.mark.matrix
def test_four_crossed_rows_of_five_train(trained: dict[str, bool]) -> None:
    if len(trained) < len(CROSSED):
        pytest.skip("not all rows were run")
    assert len(trained) > 100
    assert sum(trained.values()) >= 0.8 * len(trained)
