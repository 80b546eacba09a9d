"""Depthwise and separable convolutions as shifted products equal the native ones."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import convolution, tracing
from tests.support.tiers import matrix
from tests.support.twins import assert_engaged, assert_same, train_pair

# A backward pass of the native form has operations of its own.
NATIVE = "DepthwiseConv2dNative"
WINDOWS = {1: (3,), 2: (3, 2)}
SPATIAL = {1: (8,), 2: (8, 7)}
CHANNELS = 2


@pytest.fixture(autouse=True)
def _installed() -> None:
    SGDPlus()


def _traced(
    function: Any, *arguments: Any, lowered: bool, twice: bool = False
) -> tuple[list[Any], set[str]]:
    """Result, gradients and, `twice`, gradients of their norm; and the operations."""

    @tf.function(jit_compile=True, autograph=False)
    def run(one: Any, *arguments: Any) -> list[Any]:
        with tracing.active(one if lowered else None):
            with tf.GradientTape() as outer:
                outer.watch(arguments)
                with tf.GradientTape() as tape:
                    tape.watch(arguments)
                    result = function(*arguments)
                    pull = tf.reshape(tf.range(tf.size(result)), tf.shape(result))
                    pull = tf.cast(pull % 7 - 3, result.dtype)
                    loss = tf.reduce_sum(pull * result**2)
                slopes = tape.gradient(loss, list(arguments))
                norm = tf.add_n([tf.reduce_sum(slope**2) for slope in slopes])
            found = [result, *slopes]
            return found + outer.gradient(norm, list(arguments)) if twice else found

    graph = run.get_concrete_function(tf.constant(1), *arguments).graph
    ops = {op.type for op in graph.get_operations()}
    found = run(tf.constant(1), *arguments)
    return [t.numpy() for t in found], ops


def _random_(*shape: int, dtype: str = "float64", seed: int = 0) -> Any:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def _inputs(rank: int, data_format: str, dtype: str = "float64") -> Any:
    sizes = (*SPATIAL[rank], CHANNELS)
    if data_format == "channels_first":
        sizes = (CHANNELS, *SPATIAL[rank])
    return _random_(2, *sizes, dtype=dtype)


def _assert_equal(function: Any, *arguments: Any, twice: bool = False) -> None:
    ours, ops = _traced(function, *arguments, lowered=True, twice=twice)
    theirs, native_ops = _traced(function, *arguments, lowered=False, twice=twice)
    assert NATIVE not in ops and NATIVE in native_ops
    bound = 1e-12 if arguments[0].dtype == tf.float64 else 2e-6
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * np.abs(b).max())


SETTINGS = list(
    itertools.product(
        (1, 2),
        ((1, 1), (2, 1), (3, 1), (1, 2)),
        ("valid", "same"),
        ("channels_last", "channels_first"),
        (1, 3),
        ("float32", "float64"),
    )
)


def _is_default(settings: Any) -> bool:
    rank, (stride, dilation), padding, data_format, multiplier, dtype = settings
    if dtype == "float32" or stride == 3 or padding == "valid":
        return False
    odd = [rank == 1, dilation > 1, data_format == "channels_first", multiplier > 1]
    return sum(odd) == 1 or not any(odd) and stride == 2


@pytest.mark.parametrize(
    "settings",
    [s if _is_default(s) else matrix(s)[0] for s in SETTINGS],
    ids=["-".join(map(str, s)) for s in SETTINGS],
)
def test_depthwise_convolution_equals_the_native_form(settings: Any) -> None:
    rank, (stride, dilation), padding, data_format, multiplier, dtype = settings
    x = _inputs(rank, data_format, dtype)
    kernel = _random_(*WINDOWS[rank], CHANNELS, multiplier, dtype=dtype, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.depthwise_conv(
            x, kernel, stride, padding, data_format, dilation
        )

    _assert_equal(conv, x, kernel)


@pytest.mark.parametrize("rank", [*matrix(1), 2])
@pytest.mark.parametrize("steps", [*matrix((1, 1)), (2, 1), *matrix((1, 2))], ids=str)
@pytest.mark.parametrize("padding", [*matrix("valid"), "same"])
@pytest.mark.parametrize("data_format", ["channels_last", *matrix("channels_first")])
@pytest.mark.parametrize("dtype", [*matrix("float32"), "float64"])
def test_separable_convolution_equals_the_native_form(
    rank: int, steps: Any, padding: str, data_format: str, dtype: str
) -> None:
    stride, dilation = steps
    x = _inputs(rank, data_format, dtype)
    kernel = _random_(*WINDOWS[rank], CHANNELS, 3, dtype=dtype, seed=1)
    points = _random_(*(1,) * rank, 3 * CHANNELS, 4, dtype=dtype, seed=2)

    def conv(x: Any, kernel: Any, points: Any) -> Any:
        return keras.ops.separable_conv(
            x, kernel, points, stride, padding, data_format, dilation
        )

    _assert_equal(conv, x, kernel, points)


@pytest.mark.parametrize(
    "setting",
    [*matrix((1, 1, 1)), (2, 1, 2), *matrix((1, 2, 1))],
    ids=str,
)
def test_second_gradients_equal_the_native_ones(setting: Any) -> None:
    stride, dilation, multiplier = setting
    x = _inputs(2, "channels_last")
    kernel = _random_(*WINDOWS[2], CHANNELS, multiplier, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.depthwise_conv(
            x, kernel, stride, "same", dilation_rate=dilation
        )

    _assert_equal(conv, x, kernel, twice=True)


@pytest.mark.parametrize("strides", [(2, 3), *matrix((1, 2))], ids=str)
def test_unequal_strides_and_sizes(strides: Any) -> None:
    """TensorFlow's kernels take none without XLA; NumPy is the measure."""
    x, kernel = _random_(1, 9, 8, 2), _random_(3, 2, 2, 1, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.depthwise_conv(x, kernel, strides)

    (found, *_), _ = _traced(conv, x, kernel, lowered=True)
    x, kernel = x.numpy(), kernel.numpy()
    expected = np.empty_like(found)
    for i, j in itertools.product(*map(range, found.shape[1:3])):
        top, left = i * strides[0], j * strides[1]
        part = x[:, top : top + 3, left : left + 2]
        expected[:, i, j] = (part * kernel[..., 0]).sum((1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "window", "stride", "dilation"),
    [((9, 9), 9, 1, 1), ((8, 8), 3, 2, 2), ((4, 4), 5, 1, 1)],
    ids=["many positions", "strides of dilated windows", "window beyond the input"],
)
def test_others_keep_the_native_form(
    shape: Any, window: int, stride: int, dilation: int
) -> None:
    with tf.Graph().as_default(), tracing.active(tf.constant(1)):
        x, kernel = _random_(1, *shape, 2), _random_(window, window, 2, 1)
        form = convolution.depthwise_conv
        assert form(x, kernel, stride, dilation_rate=dilation) is None


def test_an_unknown_batch_size_keeps_the_native_form() -> None:
    with tf.Graph().as_default(), tracing.active(tf.constant(1)):
        x = tf.compat.v1.placeholder(tf.float64, (None, 9, 9, 2))
        assert convolution.depthwise_conv(x, _random_(3, 3, 2, 1)) is None


def _network() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2),
            layers.Activation("tanh"),
            layers.SeparableConv2D(4, 3, activation="tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


@pytest.mark.matrix
def test_training_equals_sgd(engagements: list[str]) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 8, 8, 3)), rng.normal(size=(20, 2))
    pair = train_pair(_network, *data)
    assert_engaged(pair, engagements, 20)
    assert_same(pair, tolerance=1e-12, logs=1e-12)


def test_switched_off_the_native_form_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.SWITCH, "0")
    x, kernel = _inputs(2, "channels_last"), _random_(3, 3, CHANNELS, 1)
    ours, ops = _traced(keras.ops.depthwise_conv, x, kernel, lowered=True)
    theirs, _ = _traced(keras.ops.depthwise_conv, x, kernel, lowered=False)
    assert NATIVE in ops
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
