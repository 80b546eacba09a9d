"""The rows of `test_structures_eager` in graphs, with arrays, XLA and a strategy.

The matrix has the cross of models, outputs and targets.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.structures import (
    CONTAINERS,
    MODELS,
    VALUES,
    Row,
    check,
    is_possible,
    keras_warns,
)
from tests.support.tiers import matrix

pytestmark = keras_warns

GRAPH = [
    *matrix(
        Row(outputs="list1", y="tensor", mode="graph", data="arrays"),
        Row("nested", outputs="list1", y="tensor", mode="graph", data="arrays"),
        Row("caller", outputs="tuple1", y="tensor", mode="graph", metrics="flat"),
        Row("subclass", "dict2", "dict2", loss="dict", metrics="dict", mode="graph"),
    ),
    Row(outputs="list1", y="tensor", mode="xla", data="arrays", metrics="list"),
]
UNDER_A_STRATEGY = [
    *matrix(
        Row(outputs="list1", y="tensor", mode="one_device", metrics="flat"),
        Row("subclass", "list1", "tuple1", "list", mode="one_device", data="arrays"),
        Row(outputs="dict2", loss="dict", mode="one_device", weights="each"),
        Row("nested", "dict1", "list2", loss="list", mode="one_device"),
        Row("caller", outputs="dict1", mode="one_device", metrics="dict"),
        Row("sequential", mode="one_device", data="arrays", weights="one"),
    ),
]


@pytest.mark.parametrize("row", GRAPH, ids=lambda row: row.id)
def test_row(row: Row, engagements: list[str]) -> None:
    assert check(row, engagements, (1, 4), saves=True)


_APART = "IN_A_PROCESS_OF_ITS_OWN"


@pytest.mark.parametrize("row", UNDER_A_STRATEGY, ids=lambda row: row.id)
def test_row_under_a_strategy(
    row: Row, engagements: list[str], request: pytest.FixtureRequest
) -> None:
    """In a process of its own, which is run again where it crashes.

    TensorFlow 2.21 crashes now and then when it deletes an iterator over the data of a
    strategy: a loop over `fit` and `evaluate` of Keras alone ends with a segmentation
    fault.
    """
    if _APART in os.environ:
        assert check(row, engagements, (1, 4))
        return
    options = ["-q", "-n", "0", "-m", "matrix or not matrix"]
    done = None
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, request.node.nodeid],
            env={**os.environ, _APART: "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode >= 0:  # else a signal has ended it
            break
    assert done is not None and done.returncode == 0, done and done.stdout[-3000:]


def _crossed() -> Iterator[Any]:
    # All other fields take turns, so that each meets many of these.
    fields = {
        name: itertools.cycle(values)
        for name, values in {
            **{n: VALUES[n] for n in ("inputs", "loss", "metrics", "weights")},
            "loss_weights": (False, False, True),
            "mode": ("graph", "eager", "graph"),
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
    trained[row.id] = check(row, engagements, (1, 4), saves=True)


@pytest.mark.matrix
def test_four_crossed_rows_of_five_train(trained: dict[str, bool]) -> None:
    if len(trained) < len(CROSSED):
        pytest.skip("not all rows were run")
    assert len(trained) > 100
    assert sum(trained.values()) >= 0.8 * len(trained)
