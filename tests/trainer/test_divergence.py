"""A loss that is not finite at the end of `fit` gives one warning with its causes."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.messages import caught_by, stream
from tests.support.twins import linear_model

FINITE = "The loss should be finite at the end of fit"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")
CLASSES = np.arange(24) % 3


def _fit(x: Any, y: Any, model: Any = None, **plus: Any) -> list[str]:
    model = linear_model() if model is None else model
    loss = "mse" if y is Y else keras.losses.SparseCategoricalCrossentropy(True)
    plus = {"learning_rate": 0.01, "jit_compile": False, **plus}
    model.compile(SGDPlus(**plus), loss)
    return caught_by(lambda: model.fit(x, y, epochs=2, verbose=0), FINITE)


def _with(array: Any, place: tuple[int, int], value: float) -> Any:
    copied = array.copy()
    copied[place] = value
    return copied


def test_divergence_lists_causes_in_order() -> None:
    (text,) = _fit(X * 1e4, Y)
    largest = f"{np.abs(X * 1e4).max():.4g}"
    assert "Received: loss=nan, with learning_rate=0.01." in text
    causes = [
        f"(1) inputs that are not scaled: x has numbers up to {largest}",
        "(2) the rate is per example",
        "(3) labels out of the range",
        '(4) a single bad example: SGDPlus(..., nonfinite="raise")',
    ]
    places = [text.index(cause) for cause in causes]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("x", "y", "plus", "said"),
    [
        (X, Y, {"learning_rate": 9.0, "momentum": 0.5}, "=9 and momentum=0.5."),
        (
            X,
            Y,
            {"learning_rate": 9.0, "examples_per_update": 2},
            "try learning_rate=0.02",
        ),
        (X, Y, {"learning_rate": lambda: 9.0}, "try rates divided by 32"),
        (X, Y, {"learning_rate": 9.0}, "inputs that are not scaled to about -1 to 1"),
        (_with(X, (7, 2), np.nan), Y, {}, "not finite: row 7 of x"),
        (_with(X, (7, 2), np.inf), Y, {}, "not finite: row 7 of x"),
        ((X * 1e4).astype("int64"), Y, {}, "(1) inputs that are not scaled: x has"),
        (tf.constant(X * 1e4), Y, {}, "(1) inputs that are not scaled: x has"),
        (X, CLASSES, {"jit_compile": True}, "labels from 0 to 2, and the model has 2"),
    ],
    ids=[
        "momentum",
        "groups",
        "callable",
        "scaled",
        "nan",
        "inf",
        "integers",
        "tensor",
        "labels",
    ],
)
def test_divergence_says_what_can_be_seen(
    x: Any, y: Any, plus: dict[str, Any], said: str
) -> None:
    (text,) = _fit(x, y, **plus)
    assert said in text


class Grown(keras.Model):
    """A model whose number of outputs cannot be seen."""

    def __init__(self, embeds: bool) -> None:
        super().__init__()
        self.table = keras.layers.Embedding(1000, 2) if embeds else None
        self.dense = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        if self.table is not None:
            x = keras.ops.mean(self.table(x), 1)
        return self.dense(x)


@pytest.mark.matrix
def test_divergence_of_other_models_and_data() -> None:
    plus = {"jit_compile": True}
    (text,) = _fit(X, CLASSES, Grown(False), **plus)
    assert "labels from 0 to 2, and they must be below the number of outputs" in text
    ids = np.arange(24)[:, None] * 40
    (text,) = _fit(ids, CLASSES, Grown(True), **plus)
    assert "inputs that are not scaled to about" in text  # ids need no scale
    dataset = tf.data.Dataset.from_tensor_slices((X * 1e4, Y)).batch(8)
    model = linear_model()
    model.compile(SGDPlus(jit_compile=False), "mse")
    texts = caught_by(lambda: stream(model, dataset), FINITE)
    assert "inputs that are not scaled to about" in texts[0] and len(texts) == 1


def test_no_warning_of_a_finite_loss_or_where_it_was_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _fit(X, Y, learning_rate=0.0) == []  # stays at chance
        assert _fit(X * 1e4, Y, examples_per_update=None) == []
        bad = linear_model()
        bad.compile(SGDPlus(jit_compile=False), "mse")
        bad.train_on_batch(X * np.nan, Y)  # by hand
        other = linear_model()
        other.compile("sgd", "mse")
        other.fit(X * np.nan, Y, verbose=0)
    model = linear_model()
    model.compile(SGDPlus(nonfinite="skip", jit_compile=False), "mse")
    skipped = "Every loss and gradient should be finite"
    assert len(caught_by(lambda: model.fit(X * np.nan, Y, verbose=0), skipped)) == 1
