"""While a loop is traced, layers have other forms, which equal the native ones."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import (
    installation,
    layout,
    pooled,
    reductions,
    tracing,
)
from tests.support.tiers import matrix, matrix_rows, tiered_keys
from tests.support.versions import KERAS

# Keras puts a 3D convolution with channels first into a function of its own.
NATIVE = {"Conv2D", "Conv3D", "MaxPool", "MaxPool3D", "PartitionedCall"}


@pytest.fixture(autouse=True)
def _installed() -> None:
    SGDPlus()


def _traced(
    function: Any, *arguments: Any, lowered: bool
) -> tuple[list[Any], set[str]]:
    """Result and gradients of a function of tensors under XLA, and its ops."""

    @tf.function(jit_compile=True, autograph=False)
    def run(one: Any, *arguments: Any) -> list[Any]:
        with tracing.active(one if lowered else None):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                result = function(*arguments)
                pull = tf.reshape(tf.range(tf.size(result)), tf.shape(result))
                loss = tf.reduce_sum(result * tf.cast(pull % 7 - 3, result.dtype))
            return [result, *tape.gradient(loss, list(arguments))]

    graph = run.get_concrete_function(tf.constant(1), *arguments).graph
    ops = {op.type for op in graph.get_operations()}
    found = run(tf.constant(1), *arguments)
    return [tf.cast(t, tf.float64).numpy() for t in found], ops


def _random_(*shape: int, dtype: str = "float64", seed: int = 0) -> Any:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


WINDOWS = {1: (3,), 2: (3, 2), 3: (2, 1, 2)}
SETTINGS = [
    (rank, stride, dilation, padding, data_format, batch)
    for rank, (stride, dilation), padding, data_format, batch in itertools.product(
        (1, 2, 3),
        ((1, 1), (2, 1), (1, 2)),
        ("valid", "same"),
        ("channels_last", "channels_first"),
        (1, 3),
    )
    if not (data_format == "channels_first" and batch == 3)
]


def _is_default(settings: Any) -> bool:
    rank, stride, dilation, _, data_format, batch = settings
    plain = stride == dilation == 1
    return data_format == "channels_last" and batch == 1 and (rank == 2 or plain)


@pytest.mark.parametrize(
    "settings",
    [s if _is_default(s) else matrix(s)[0] for s in SETTINGS],
    ids=["-".join(map(str, s)) for s in SETTINGS],
)
def test_convolution_equals_the_native_form(settings: Any) -> None:
    rank, stride, dilation, padding, data_format, batch = settings
    spatial = (7, 6, 5)[:rank]
    last = data_format == "channels_last"
    x = _random_(batch, *spatial, 2) if last else _random_(batch, 2, *spatial)
    kernel = _random_(*WINDOWS[rank], 2, 3, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.conv(x, kernel, stride, padding, data_format, dilation)

    ours, ops = _traced(conv, x, kernel, lowered=True)
    theirs, native_ops = _traced(conv, x, kernel, lowered=False)
    assert not ops & NATIVE and native_ops & NATIVE
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


# One setting at a time differs from the first row.
IN_GROUPS = {
    "stride": (2, (2, 1), "same", "channels_last"),
    "plain": (2, (1, 1), "same", "channels_last"),
    "dilation": (2, (1, 2), "same", "channels_last"),
    "valid": (2, (2, 1), "valid", "channels_last"),
    "1D": (1, (2, 1), "same", "channels_last"),
    "3D": (3, (2, 1), "same", "channels_last"),
    "channels_first": (2, (2, 1), "same", "channels_first"),
}


@pytest.mark.parametrize("channels", [2, 1], ids=["two groups", "each channel"])
@pytest.mark.parametrize("name", tiered_keys(IN_GROUPS, "stride"))
def test_convolution_in_groups_equals_the_native_form(name: str, channels: int) -> None:
    rank, steps, padding, data_format = IN_GROUPS[name]
    spatial, (stride, dilation) = (7, 6, 5)[:rank], steps
    last = data_format == "channels_last"
    x = _random_(2, *spatial, 4) if last else _random_(2, 4, *spatial)
    kernel = _random_(*WINDOWS[rank], channels, 8, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.conv(x, kernel, stride, padding, data_format, dilation)

    ours, ops = _traced(conv, x, kernel, lowered=True)
    theirs, native_ops = _traced(conv, x, kernel, lowered=False)
    assert not ops & NATIVE and native_ops & NATIVE
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "window", "padding", "data_format", "lowered"),
    [
        ((6, 6), 2, "valid", "channels_last", True),
        ((6, 6), 2, "same", "channels_last", True),
        ((7, 5), 2, "same", "channels_last", False),
        ((4, 4, 5), 2, "valid", "channels_last", True),
        *matrix_rows(
            ((7, 5), 2, "valid", "channels_last", True),
            ((6, 9), (2, 3), "valid", "channels_last", True),
            ((6, 6), 3, "valid", "channels_first", True),
            ((9,), 3, "valid", "channels_last", True),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("values", [*matrix("random"), "ties", *matrix("equal")])
def test_max_pool_equals_the_native_form(
    size: Any, window: Any, padding: str, data_format: str, lowered: bool, values: str
) -> None:
    rng = np.random.default_rng(0)
    last = data_format == "channels_last"
    shape = (2, *size, 3) if last else (2, 3, *size)
    draws = {
        "random": rng.normal(size=shape),
        "ties": rng.integers(0, 3, size=shape),
        "equal": np.ones(shape),
    }
    x = tf.constant(draws[values], "float32")

    def pool(x: Any) -> Any:
        return keras.ops.max_pool(x, window, None, padding, data_format)

    ours, ops = _traced(pool, x, lowered=True)
    theirs, _ = _traced(pool, x, lowered=False)
    assert bool(ops & NATIVE) is not lowered
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_overlapping_windows_keep_the_native_form() -> None:
    with tf.Graph().as_default(), tracing.active(tf.constant(1)):
        x = _random_(1, 6, 6, 2)
        assert pooled.max_pool(x, 3, 2) is None
        assert pooled.max_pool(x, 2, 2) is not None


@pytest.mark.parametrize(
    ("rate", "noise_shape", "dtype"),
    [
        (0.25, None, "float32"),
        (0.7, (None, 1, 4), "float32"),
        pytest.param(0.3, None, "float64", marks=pytest.mark.matrix),
        (0.3, None, "bfloat16"),
        pytest.param(0.5, None, "float16", marks=pytest.mark.matrix),
        (0.0, None, "float32"),
    ],
    ids=str,
)
def test_dropout_draws_the_same_mask(rate: float, noise_shape: Any, dtype: str) -> None:
    x = _random_(3, 50, 4, dtype=dtype)
    runs = []
    for lowered in (True, False):
        generator = keras.random.SeedGenerator(5)
        before = generator.state.numpy()

        def drop(x: Any, generator: Any = generator) -> Any:
            return keras.random.dropout(x, rate, noise_shape, generator)

        found, ops = _traced(drop, x, lowered=lowered)
        assert (bool(ops & {"While", "StatelessWhile"})) is (lowered and rate > 0)
        runs.append((found, generator.state.numpy() - before))
    (ours, our_seed), (theirs, their_seed) = runs
    # Keras 3.13 draws a seed for no rate, too.
    assert our_seed.any() == (rate > 0 or KERAS <= (3, 13))
    np.testing.assert_array_equal(our_seed, their_seed)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [*matrix(1, 2, 3), 4, *matrix(5), 63])
@pytest.mark.parametrize("seed", [*matrix(0), 7, *matrix(2**31 - 1)])
def test_uniform_numbers_are_those_of_tensorflow(size: int, seed: int) -> None:
    @tf.function(jit_compile=True, autograph=False)
    def run(seed: Any) -> Any:
        native = tf.random.stateless_uniform((size,), seed)
        return reductions.uniform(seed, tf.TensorShape((size,))), native

    ours, theirs = run(tf.constant([seed, 3]))
    np.testing.assert_array_equal(ours, theirs)


SHAPES = [*matrix((4, 3), (1, 5, 3)), (2, 4, 5, 3), *matrix((1, 2, 3, 4, 2))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_batch_normalization_equals_the_native_form(shape: Any, affine: bool) -> None:
    x, scale, offset = _random_(*shape), *_random_(2, shape[-1], seed=1)
    axes = list(range(len(shape) - 1))

    def normalize(x: Any, scale: Any, offset: Any) -> Any:
        moments: Any = keras.ops.moments
        mean, variance = moments(x, axes)
        kept = moments(x, axes, keepdims=True)
        parts = {"offset": offset, "scale": scale} if affine else {}
        done = keras.ops.batch_normalization(x, mean, variance, -1, **parts)
        # Here mean and variance get gradients of their own.
        return done + kept[0] * scale + kept[1] * offset + mean - variance

    arguments = x, scale, offset
    ours, ops = _traced(normalize, *arguments, lowered=True)
    theirs, native_ops = _traced(normalize, *arguments, lowered=False)
    assert ops != native_ops
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_other_axes_keep_the_native_form() -> None:
    x = _random_(2, 3, 4)
    with tracing.active(tf.constant(1)):
        assert reductions.moments(x, [1], False) is None
        assert reductions.moments(x, [1, 2], False) is None
        assert reductions.moments(x, [-3, 1], False) is not None
        mean = tf.zeros(3, tf.float64)
        norm = installation.LOWERINGS["batch_normalization"]
        assert norm(x, mean, mean, 1) is None


@pytest.mark.parametrize("rows", [3, *matrix(1, 70)])
def test_a_wide_bias_equals_the_native_form(rows: int) -> None:
    arguments = (
        _random_(1, rows, reductions.MIN_WIDTH),
        _random_(reductions.MIN_WIDTH, seed=1),
    )
    ours, ops = _traced(keras.ops.add, *arguments, lowered=True)
    theirs, native_ops = _traced(keras.ops.add, *arguments, lowered=False)
    assert "MatMul" in ops and "MatMul" not in native_ops
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [513, *matrix(512, 1_000, 1_023)])
def test_sums_and_maxima_of_wide_matrices_equal_numpy(width: int) -> None:
    x = np.random.default_rng(0).normal(size=(width, width))
    x += 9 * np.eye(width)  # the largest entries stand at every place
    x[1, 3], x[5, 7] = np.nan, np.inf
    tensor = tf.constant(x)
    pairs = (
        (reductions.sum_of_rows, x.sum(1, keepdims=True)),
        (reductions.sum_of_columns, x.sum(0)),
    )
    for function, expected in pairs:
        compiled = tf.function(function, jit_compile=True, autograph=False)
        ops = {
            o.type
            for o in compiled.get_concrete_function(tensor).graph.get_operations()
        }
        assert "MatMul" in ops
        np.testing.assert_allclose(compiled(tensor), expected, rtol=1e-12, atol=1e-12)
    finite = np.nan_to_num(x, nan=-1.0)
    largest = tf.function(reductions.largest_of_rows, jit_compile=True, autograph=False)
    found = largest(tf.constant(finite))
    np.testing.assert_array_equal(found, finite.max(1, keepdims=True))


@pytest.mark.parametrize("dtype", ["float16", *matrix("bfloat16")])
def test_sums_in_half_precision_keep_the_native_form(dtype: str) -> None:
    x = _random_(2, reductions.MIN_WIDTH, dtype=dtype)
    np.testing.assert_array_equal(reductions.sum_of_rows(x), tf.reduce_sum(x, -1, True))
    np.testing.assert_array_equal(reductions.sum_of_columns(x), tf.reduce_sum(x, 0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [(3,), *matrix((1, 3), (1, 1, 3))], ids=str)
def test_bias_equals_the_native_form(shape: Any, bias: Any) -> None:
    arguments = _random_(*shape[:-1], 3), _random_(*bias, seed=1)
    ours, _ = _traced(keras.ops.add, *arguments, lowered=True)
    theirs, _ = _traced(keras.ops.add, *arguments, lowered=False)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "bias"), [((2, 3, 4), (3, 4)), ((2, 3, 4), (3, 1)), ((4, 3), (3,))], ids=str
)
def test_other_sums_keep_the_native_form(x: Any, bias: Any) -> None:
    assert reductions.add(_random_(*x), _random_(*bias)) is None


@pytest.mark.parametrize("labels", ["valid", "out_of_range"])
@pytest.mark.parametrize("column", [False, *matrix(True)], ids=["vector", "column"])
@pytest.mark.parametrize("positions", [4, *matrix(2)], ids=["wide", "wider"])
def test_cross_entropy_equals_the_native_form(
    labels: str, column: bool, positions: int
) -> None:
    rng = np.random.default_rng(0)
    classes = 2_401 // positions  # 600, and an odd number
    target = rng.integers(0, classes, size=(2, positions))
    if labels == "out_of_range":
        target[0, 1], target[1, 0] = -1, classes
    target = target[..., None] if column else target

    def loss(logits: Any) -> Any:
        return keras.ops.sparse_categorical_crossentropy(target, logits, True)

    logits = 3 * _random_(2, positions, classes)
    ours, ops = _traced(loss, logits, lowered=True)
    theirs, native_ops = _traced(loss, logits, lowered=False)
    name = "SparseSoftmaxCrossEntropyWithLogits"
    assert name not in ops and name in native_ops
    assert np.isnan(ours[0]).sum() == (2 if labels == "out_of_range" else 0)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_probabilities_and_few_classes_keep_the_native_form() -> None:
    def loss(logits: Any, **kwargs: Any) -> Any:
        return keras.ops.sparse_categorical_crossentropy([[1] * 8], logits, **kwargs)

    few, probable = _random_(1, 8, 20), tf.nn.softmax(_random_(1, 8, 600))
    for logits, kwargs in ((few, {"from_logits": True}), (probable, {})):
        ours, ops = _traced(lambda x, k=kwargs: loss(x, **k), logits, lowered=True)
        theirs, _ = _traced(lambda x, k=kwargs: loss(x, **k), logits, lowered=False)
        assert "SparseSoftmaxCrossEntropyWithLogits" in ops
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [*matrix(15), 16, *matrix(21, 63), 64])
def test_a_short_dot_product_equals_the_native_form(length: int) -> None:
    def product(x: Any, stored: Any) -> Any:
        matrix = layout.to_model_layout(stored)
        lowered = layout.matmul(x, matrix)
        return tf.matmul(x, matrix) if lowered is None else lowered

    def native(x: Any, stored: Any) -> Any:
        return tf.matmul(x, stored, transpose_b=True)

    operands = _random_(1, length), _random_(1, length, seed=1)
    found, ops = _traced(product, *operands, lowered=True)
    expected, _ = _traced(native, *operands, lowered=False)
    assert ("MatMul" in ops) is (length in (15, 64))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)
