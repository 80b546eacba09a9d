"""The loop moves some tables whole, after a warning that names the reason."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from tests.support.tables import (
    LENGTH,
    MOMENTUM,
    ROWS,
    WIDTH,
    WithTable,
    bag,
    headed,
    ids,
    labels,
)
from tests.support.twins import train_pair


def _regularized() -> keras.Model:
    return bag(embeddings_regularizer="l2")


def _constrained() -> keras.Model:
    return bag(embeddings_constraint="max_norm")


class _Tied(WithTable):
    """Looks up rows on the way in, and uses the whole table on the way out."""

    def call(self, ids: Any) -> Any:
        mean = keras.ops.mean(self.table(ids), axis=1)
        return keras.ops.matmul(mean, keras.ops.transpose(self.table.embeddings))


def _tied() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, _Tied()(inputs))


class _Projection(WithTable):
    """Multiplies by the whole table instead of a lookup."""

    def call(self, ids: Any) -> Any:
        rows = keras.ops.one_hot(ids, ROWS)
        return keras.ops.mean(keras.ops.matmul(rows, self.table.embeddings), axis=1)


def _projection() -> keras.Model:
    return headed(_Projection())


class _Branch(WithTable):
    """Looks up rows in a branch."""

    def call(self, ids: Any) -> Any:
        def rows() -> Any:
            return keras.ops.mean(self.table(ids), axis=1)

        return keras.ops.cond(ids[0, 0] % 2 == 0, rows, lambda: 2 * rows())


def _branch() -> keras.Model:
    return headed(_Branch())


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        (bag, {"use_ema": True}, "use_ema"),
        pytest.param(
            bag,
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps",
            marks=pytest.mark.matrix,
        ),
        pytest.param(_constrained, {}, "constraint", marks=pytest.mark.matrix),
        pytest.param(_regularized, {}, "regularizer", marks=pytest.mark.matrix),
        pytest.param(_tied, {}, "another way", marks=pytest.mark.matrix),
        pytest.param(_projection, {}, "another way", marks=pytest.mark.matrix),
        pytest.param(_branch, {}, "another way", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.filterwarnings("default:With momentum or weight decay")
def test_falls_back_and_says_so(
    model: Any, settings: Any, named: str, tables: list[int], engagements: list[str]
) -> None:
    count = 60
    loss = keras.losses.SparseCategoricalCrossentropy
    with pytest.warns(UserWarning, match="every update moves all") as caught:
        pair = train_pair(
            model,
            ids(count),
            labels(count),
            sgd={"learning_rate": 0.05, **MOMENTUM, **settings},
            compile=lambda: {"loss": loss(from_logits=True)},
            fit={"epochs": 2},
        )
    (text,) = [str(w.message) for w in caught if "moves all" in str(w.message)]
    assert named in text and f"({ROWS}, {WIDTH})" in text
    assert engagements
    # A first trace may find the reason; the trace that runs moves no table in parts.
    assert pair.difference().relative <= 1e-5
