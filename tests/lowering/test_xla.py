"""XLA compiles graphs of known operations at once; others get a trial first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.internals import compiled, xla
from tests.support.tiers import matrix
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


IMAGE, KERNEL, SMALL = (1, 6, 6, 4), (3, 3, 4, 2), (1, 3, 3, 4)
_STRIDES = {"strides": [1, 2, 2, 1], "padding": "SAME"}
_WINDOW = {"ksize": [1, 2, 2, 1], **_STRIDES}
raw = tf.raw_ops
# By operation: the shapes of its arguments, and a call that has strides.
IN_CONVOLUTIONAL: dict[str, tuple[list[Any], Callable[..., Any]]] = {
    "AvgPool": ([IMAGE], lambda x: raw.AvgPool(value=x, **_WINDOW)),
    "AvgPoolGrad": (
        [SMALL],
        lambda g: raw.AvgPoolGrad(orig_input_shape=list(IMAGE), grad=g, **_WINDOW),
    ),
    "Conv2D": (
        [IMAGE, KERNEL],
        lambda x, k: raw.Conv2D(input=x, filter=k, **_STRIDES),
    ),
    "Conv2DBackpropFilter": (
        [IMAGE, (1, 3, 3, 2)],
        lambda x, g: raw.Conv2DBackpropFilter(
            input=x, filter_sizes=list(KERNEL), out_backprop=g, **_STRIDES
        ),
    ),
    "Conv2DBackpropInput": (
        [KERNEL, (1, 3, 3, 2)],
        lambda k, g: raw.Conv2DBackpropInput(
            input_sizes=list(IMAGE), filter=k, out_backprop=g, **_STRIDES
        ),
    ),
    "DepthwiseConv2dNative": (
        [IMAGE, KERNEL],
        lambda x, k: raw.DepthwiseConv2dNative(input=x, filter=k, **_STRIDES),
    ),
    "DepthwiseConv2dNativeBackpropFilter": (
        [IMAGE, (1, 3, 3, 8)],
        lambda x, g: raw.DepthwiseConv2dNativeBackpropFilter(
            input=x, filter_sizes=list(KERNEL), out_backprop=g, **_STRIDES
        ),
    ),
    "DepthwiseConv2dNativeBackpropInput": (
        [KERNEL, (1, 3, 3, 8)],
        lambda k, g: raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=list(IMAGE), filter=k, out_backprop=g, **_STRIDES
        ),
    ),
    "Erf": ([IMAGE], tf.math.erf),
    "MaxPool": ([IMAGE], lambda x: raw.MaxPool(input=x, **_WINDOW)),
    "MaxPoolGrad": (
        [IMAGE, SMALL, SMALL],
        lambda x, y, g: raw.MaxPoolGrad(orig_input=x, orig_output=y, grad=g, **_WINDOW),
    ),
    "SplitV": (
        [IMAGE],
        lambda x: tf.concat(
            raw.SplitV(value=x, size_splits=[1, 3], axis=3, num_split=2)[::-1], 3
        ),
    ),
    "Pow": ([IMAGE], lambda x: tf.pow(tf.abs(x), tf.cast(1.5, x.dtype))),
}


@pytest.mark.parametrize(
    "dtype", ["float32", *matrix("float64", "bfloat16", "float16")]
)
@pytest.mark.parametrize("name", IN_CONVOLUTIONAL)
def test_xla_takes_what_it_surely_takes(name: str, dtype: str) -> None:
    """It compiles and runs, to what TensorFlow gives without XLA."""
    shapes, call = IN_CONVOLUTIONAL[name]
    rng = np.random.default_rng(0)
    arguments = [tf.cast(rng.normal(size=shape), dtype) for shape in shapes]
    compiled = tf.function(call, jit_compile=True, autograph=False)
    graph = compiled.get_concrete_function(*arguments).graph
    assert name in {op.type for op in graph.get_operations()}
    assert xla.surely_takes(graph)
    found = compiled(*arguments)
    assert found.dtype == dtype
    # Maxima of numbers that float16 rounds are ties: shapes are enough for the rest.
    assert found.shape == call(*arguments).shape
    if dtype in ("float32", "float64"):
        np.testing.assert_allclose(found, call(*arguments), rtol=1e-4, atol=1e-5)


def test_a_size_from_the_data_is_not_surely_taken() -> None:
    def resized(g: Any, size: Any) -> Any:
        return raw.AvgPoolGrad(orig_input_shape=size, grad=g, **_WINDOW)

    spec = tf.TensorSpec(SMALL), tf.TensorSpec((4,), tf.int32)
    graph = tf.function(resized, autograph=False).get_concrete_function(*spec).graph
    assert not xla.surely_takes(graph)


@pytest.mark.parametrize("dtype", ["float32", *matrix("float16")])
def test_dropout_is_surely_taken(dtype: str) -> None:
    _assert_not_tried(layers.Dropout(0.5, dtype=dtype))


def test_convolutions_are_surely_taken() -> None:
    """Two of them: the second one has a gradient by its inputs."""
    convolutions = [layers.Conv1D(3, 2), layers.Conv1D(2, 2), layers.Flatten()]
    _assert_not_tried(layers.Reshape((4, 1)), *convolutions)


def _assert_not_tried(*before: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), *before, layers.Dense(1)])
    model.compile(SGDPlus(0.01), "mse")
    with mock.patch.object(compiled, "found_by_xla") as found:
        model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    found.assert_not_called()


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


@pytest.mark.matrix
@pytest.mark.parametrize(("layer", "tried"), [("dense", False), ("lambda", True)])
def test_only_the_unknown_is_tried(
    layer: str, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    find = compiled.found_by_xla

    def counted(*args: Any) -> Any:
        trials.append(args)
        return find(*args)

    monkeypatch.setattr(compiled, "found_by_xla", counted)
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
