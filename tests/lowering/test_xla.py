"""XLA compiles graphs of known operations at once; others get a trial first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import refusal, xla
from tests.support.twins import dense_data, dense_model


def _gradient(x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(y)
        product = x * y
    return tape.gradient(product, y)


GRAPHS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "dense": (lambda x: tf.nn.relu(tf.matmul(x, x) + 1), True),
    "float64": (lambda x: tf.cast(x, tf.float64) * 2, True),
    "static_shape": (lambda x: tf.reshape(x, (tf.shape(x)[0], -1)), True),
    "reshape_from_data": (
        lambda x: tf.reshape(x, [tf.cast(x[0, 0], tf.int32), 3]) + tf.ones((3, 3)),
        False,
    ),
    "broadcast": (lambda x: _gradient(x, x[0]), True),
    "print": (lambda x: (tf.print(x), x)[1], False),
    "python": (lambda x: tf.numpy_function(np.sin, [x], tf.float32), False),
    "strings": (lambda x: tf.constant("a"), False),
    "data_dependent": (lambda x: tf.boolean_mask(x, x[:, 0] > 0), False),
    "shape_from_data": (lambda x: tf.zeros((tf.cast(x[0, 0], tf.int32), 2)), False),
    "inner_loop": (lambda x: tf.while_loop(lambda x: x < 1, lambda x: [x], [1]), False),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_xla_surely_takes(name: str) -> None:
    function, expected = GRAPHS[name]
    traced = tf.function(function, autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec((3, 3))).graph
    assert xla.surely_takes(graph) is expected


@pytest.mark.parametrize(("takes", "expected"), [("one", True), ("length", False)])
def test_a_batch_of_unknown_length(takes: str, expected: bool) -> None:
    @tf.function(autograph=False)
    def outer(x: Any, i: Any) -> Any:
        def body_fn(i: Any, total: Any) -> Any:
            graphs.append(tf.compat.v1.get_default_graph())
            taken = tf.gather(x, i) if takes == "one" else tf.reduce_sum(x, 0)
            return i + 1, total + taken

        graphs: list[Any] = []
        loop = tf.while_loop(lambda i, _: i < 3, body_fn, (i, tf.zeros((2,))))
        assert xla.surely_takes(graphs[-1]) is expected
        return loop

    outer.get_concrete_function(tf.TensorSpec((None, 2)), tf.TensorSpec((), tf.int32))


@pytest.mark.parametrize(("layer", "tried"), [("dense", False), ("lambda", True)])
def test_only_the_unknown_is_tried(
    layer: str, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    find = refusal.found

    def counted(*args: Any) -> Any:
        trials.append(args)
        return find(*args)

    monkeypatch.setattr(refusal, "found", counted)
    model: Any = dense_model()
    if layer == "lambda":
        odd = keras.layers.Lambda(lambda x: tf.math.erf(tf.math.erfinv(x / 9)))
        model = keras.Sequential([model, odd])
    model.compile(SGDPlus(0.01), "mse")
    model.fit(*dense_data(), verbose=0)
    assert bool(trials) is tried


def test_whether_xla_compiles_what_is_traced() -> None:
    seen = []

    def look() -> Any:
        seen.append(xla.is_tracing())
        return tf.constant(0)

    look()
    tf.function(look)()
    tf.function(look, jit_compile=True)()
    tf.function(lambda: tf.function(look)(), jit_compile=True)()
    assert seen == [False, False, True, True]
