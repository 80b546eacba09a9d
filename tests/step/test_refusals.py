"""A model that trains without XLA says why, once, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_sgd_plus import SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import tiered_rows

N = 6
Y = np.linspace(-1, 1, N, dtype="float32")[:, None]
NUMBERS = np.linspace(-2, 2, 3 * N, dtype="float32").reshape(N, 3)
LINES = tf.ragged.constant([[1, 2], [3], [4, 5, 6], [1], [2, 2], [3, 4]])


class Turns(layers.Layer):
    """Doubles by turns of a loop; `options` are those of `keras.ops.while_loop`."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def call(self, x: Any) -> Any:
        turn = lambda i, h: (i + 1, ops.tanh(h))  # noqa: E731
        return ops.while_loop(lambda i, h: i < 3, turn, (0, x), **self.options)[1]


class Forever(Turns):
    """A loop whose largest number of turns is not known."""


class Beside(layers.Layer):
    """The inputs, and what another layer makes of them."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any) -> Any:
        return ops.concatenate([x, ops.cast(self.inner(x), x.dtype)])


class Totals(layers.Layer):
    """The sums of ragged rows."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((x.shape[0], x.shape[2]), "float32")

    def call(self, x: Any) -> Any:
        return tf.reduce_sum(x, 1)


class Lengths(layers.Layer):
    """The lengths of strings, times a trained weight."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="scale")

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, "float32")

    def call(self, x: Any) -> Any:
        return self.scale * tf.cast(tf.strings.length(x), "float32")


def _of_strings() -> Any:
    first = keras.Input((1,), dtype="string")
    return keras.Model(first, layers.Dense(1)(Lengths()(first)))


def _of_ragged() -> Any:
    first = keras.Input((None,), dtype="int32", ragged=True)
    rows = layers.Embedding(20, 2)(first)
    return keras.Model(first, layers.Dense(1)(Totals()(rows)))


def _of_sparse() -> Any:
    first = keras.Input((3,), sparse=True)
    return keras.Model(first, layers.Dense(1)(first))


def _on_numbers(*body: Callable[[], Any]) -> Any:
    made = (make() for make in body)
    return keras.Sequential([keras.Input((3,)), *made, layers.Dense(1)])


# A model and its x, what the warning says of the reason, and a part of its fix.
ROWS: dict[str, tuple[Callable[[], Any], Any, str, str]] = {
    "strings": (
        _of_strings,
        lambda: tf.constant([["a"], ["b"]] * 3),
        "it is given strings",
        "dataset.map(lambda x, y: (lookup(x), y))",
    ),
    "ragged": (
        _of_ragged,
        lambda: LINES,
        "it is given ragged tensors",
        "dataset.map(lambda x, y: (x.to_tensor(), y))",
    ),
    "sparse": (
        _of_sparse,
        lambda: tf.sparse.from_dense(NUMBERS),
        "it is given sparse tensors",
        "dataset.map(lambda x, y: (tf.sparse.to_dense(x), y))",
    ),
    "layer": (
        lambda: _on_numbers(
            lambda: layers.Dense(4),
            lambda: layers.Reshape((2, 2, 1)),
            lambda: layers.RandomZoom(0.1),
            layers.Flatten,
        ),
        lambda: NUMBERS,
        "layer 'random_zoom' (RandomZoom) has supports_jit=False",
        "dataset.map(lambda x, y: (layer(x), y))",
    ),
    "open_loop": (
        lambda: _on_numbers(lambda: layers.Dense(3), Forever),
        lambda: NUMBERS,
        "a loop (keras.ops.while_loop,",
        "keras.ops.while_loop(..., maximum_iterations=n)",
    ),
    "size": (
        lambda: _on_numbers(
            lambda: layers.Dense(3),
            lambda: Beside(layers.Discretization([-1.0, 1.0], output_mode="multi_hot")),
        ),
        lambda: NUMBERS,
        "operation DenseBincount of layer 'discretization' (Discretization) has a size",
        'output_mode="int"',
    ),
}


@pytest.mark.parametrize(
    ("make", "x", "reason", "fix"),
    tiered_rows(ROWS, "layer", unpack=True),
)
def test_says_why_once_and_what_to_write(
    make: Any, x: Any, reason: str, fix: str, engagements: list[str]
) -> None:
    keras.backend.clear_session(free_memory=False)  # names without numbers
    texts = {}
    for jit_compile in ("auto", False):
        model = make()
        model.compile(SGDPlus(0.01, jit_compile=jit_compile), "mse")
        texts[jit_compile] = caught_by(lambda: _fit_twice(model, x()), "XLA")  # noqa: B023
        assert int(model.optimizer.iterations) == 2 * N
    (text,) = texts["auto"]
    assert f"of model {engagements[0]!r}: {reason}" in text
    assert fix in text and "SGDPlus(..., jit_compile=False)" in text
    assert texts[False] == []


def _fit_twice(model: Any, x: Any) -> None:
    # One more size of batch, so that the step is traced once more.
    dataset = tf.data.Dataset.from_tensor_slices((x, Y))
    model.fit(dataset.batch(3), shuffle=False, verbose=0)
    model.fit(dataset.batch(4, drop_remainder=False), shuffle=False, verbose=0)


def test_the_loop_that_it_advises_compiles() -> None:
    model = _on_numbers(lambda: layers.Dense(3), lambda: Turns(maximum_iterations=3))
    model.compile(SGDPlus(0.01), "mse")
    model.fit(NUMBERS, Y, verbose=0)  # a warning would be an error
