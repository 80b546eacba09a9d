"""The forms that replace convolution, pooling and dropout while a loop is traced."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus, _convolution, _hook, _lowering
from tests.twins import assert_engaged, assert_same, train_pair

# Keras compiles a 3D convolution with channels first in a function of its own.
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
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            with _lowering.active(one if lowered else None):
                result = function(*arguments)
            pull = tf.reshape(tf.range(tf.size(result)), tf.shape(result))
            loss = tf.reduce_sum(result * tf.cast(pull % 7 - 3, result.dtype))
        return [result, *tape.gradient(loss, list(arguments))]

    graph = run.get_concrete_function(tf.constant(1), *arguments).graph
    ops = {op.type for op in graph.get_operations()}
    found = run(tf.constant(1), *arguments)
    return [tf.cast(t, tf.float64).numpy() for t in found], ops


def _random(*shape: int, dtype: str = "float64", seed: int = 0) -> Any:
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


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s)))
def test_convolution_equals_the_native_form(settings: Any) -> None:
    rank, stride, dilation, padding, data_format, batch = settings
    spatial = (7, 6, 5)[:rank]
    last = data_format == "channels_last"
    x = _random(batch, *spatial, 2) if last else _random(batch, 2, *spatial)
    kernel = _random(*WINDOWS[rank], 2, 3, seed=1)

    def conv(x: Any, kernel: Any) -> Any:
        return keras.ops.conv(x, kernel, stride, padding, data_format, dilation)

    ours, ops = _traced(conv, x, kernel, lowered=True)
    theirs, native_ops = _traced(conv, x, kernel, lowered=False)
    assert not ops & NATIVE and native_ops & NATIVE
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_groups_keep_the_native_form() -> None:
    x, kernel = _random(1, 5, 5, 4), _random(3, 3, 2, 6, seed=1)
    with _lowering.active(tf.constant(1)):
        assert _convolution.conv(x, kernel, 1, "valid", True, 1) is None
    ours, ops = _traced(keras.ops.conv, x, kernel, lowered=True)
    theirs, _ = _traced(keras.ops.conv, x, kernel, lowered=False)
    assert "MatMul" not in ops
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("size", "window", "padding", "data_format", "lowered"),
    [
        ((6, 6), 2, "valid", "channels_last", True),
        ((6, 6), 2, "same", "channels_last", True),
        ((7, 5), 2, "valid", "channels_last", True),
        ((7, 5), 2, "same", "channels_last", False),
        ((6, 9), (2, 3), "valid", "channels_last", True),
        ((6, 6), 3, "valid", "channels_first", True),
        ((9,), 3, "valid", "channels_last", True),
        ((4, 4, 5), 2, "valid", "channels_last", True),
    ],
    ids=str,
)
@pytest.mark.parametrize("values", ["random", "ties", "equal"])
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
    with _lowering.active(tf.constant(1)):
        x = _random(1, 6, 6, 2)
        assert _convolution.max_pool(x, 3, 2, "valid", True) is None
        assert _convolution.max_pool(x, 2, 2, "valid", True) is not None


@pytest.mark.parametrize(
    ("rate", "noise_shape", "dtype"),
    [
        (0.25, None, "float32"),
        (0.7, (None, 1, 4), "float32"),
        (0.3, None, "float64"),
        (0.3, None, "bfloat16"),
        (0.5, None, "float16"),
        (0.0, None, "float32"),
    ],
    ids=str,
)
def test_dropout_draws_the_same_mask(rate: float, noise_shape: Any, dtype: str) -> None:
    x = _random(3, 50, 4, dtype=dtype)
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
    assert our_seed.any() == (rate > 0)
    np.testing.assert_array_equal(our_seed, their_seed)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_the_thread_that_traces_a_loop_is_lowered() -> None:
    seen = []

    def look() -> None:
        seen.append(_lowering.is_active())

    with _lowering.active(tf.constant(1)):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
    look()
    assert seen == [False, True, False]


def test_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_lowering.SWITCH, "0")
    with _lowering.active(tf.constant(1)):
        assert not _lowering.is_active()


def test_uninstall_restores_kerass_functions() -> None:
    from keras.src.backend.tensorflow import nn, random

    ours = nn.conv, nn.max_pool, random.dropout
    _hook.uninstall()
    theirs = nn.conv, nn.max_pool, random.dropout
    SGDPlus()
    again = nn.conv, nn.max_pool, random.dropout
    assert [f.__wrapped__ for f in ours] == list(theirs)
    assert [f.__wrapped__ for f in again] == list(theirs)


@pytest.mark.parametrize(("jit_compile", "used"), [("auto", True), (False, False)])
def test_a_loop_is_lowered_where_xla_compiles_it(
    jit_compile: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    conv = _convolution.conv

    def spy(*args: Any) -> Any:
        calls.append(args)
        return conv(*args)

    monkeypatch.setattr(_convolution, "conv", spy)
    model = _cnn()
    model.compile(SGDPlus(jit_compile=jit_compile), "mse")
    model.fit(np.ones((4, 10, 10, 1)), np.ones((4, 3)), verbose=0)
    assert bool(calls) is used


def _cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(24, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.25, seed=1),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("group_size", [1, 4])
def test_model_equals_keras(group_size: int, engagements: list[str]) -> None:
    # In float64: at a ReLU or a maximum, float32 rounding can decide where a gradient
    # goes, and how a kernel rounds depends on the processor.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 10, 10, 1))
    y = rng.normal(size=(40, 3))
    pair = train_pair(
        _cnn,
        x,
        y,
        sgd={"learning_rate": 0.005, "momentum": 0.9},
        plus={"order": "given", "examples_per_update": group_size},
        compile={"loss": "mse", "jit_compile": True},
        our_fit={"batch_size": 20},
        their_fit={"batch_size": group_size, "shuffle": False},
        our_compile={"jit_compile": "auto"},
    )
    assert_engaged(pair, engagements, len(x) // group_size)
    assert_same(pair, tolerance=1e-12, logs=1e-12)
