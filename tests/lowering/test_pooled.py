"""The gradients of a convolution behind max-pooling equal the native ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import pooled, tracing
from tests.support.tiers import matrix

# image, window, filters; stride, padding, pool
CASES = {
    "even": ((1, 12, 12, 8), (3, 3), 5, 1, "same", 2),
    "cropped": ((1, 9, 8, 8), (3, 2), 4, 1, "valid", 2),
    "strides": ((1, 13, 12, 8), (3, 3), 4, 2, "same", 2),
    "pool of 3 x 2": ((1, 11, 12, 6), (3, 3), 3, 1, "valid", (3, 2)),
    "three examples": ((3, 8, 8, 8), (2, 3), 4, 1, "same", 2),
    "line": ((2, 20, 8), (3,), 4, 1, "valid", 3),
    "cube": ((1, 6, 4, 6, 8), (2, 1, 3), 3, 1, "same", 2),
    "filter after filter": ((1, 8, 8, 32), (3, 3), 32, 1, "same", 2),
}


@pytest.fixture(autouse=True)
def _installed() -> None:
    SGDPlus()


def _random(*shape: int, seed: int) -> Any:
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def _parts(case: str) -> list[Any]:
    shape, window, filters, *_ = CASES[case]
    kernel = _random(*window, shape[-1], filters, seed=1)
    return [_random(*shape, seed=0), kernel, _random(filters, seed=2)]


def _results(case: str, network: Any, lowered: bool, twice: bool = False) -> list[Any]:
    """Loss, gradients and, if asked for, the gradients of their squares."""
    _, _, _, stride, padding, pool = CASES[case]

    @tf.function(jit_compile=True, autograph=False)
    def run(one: Any, *parts: Any) -> list[Any]:
        def gradients() -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                tape.watch(parts)
                outputs = network(*parts, stride, padding, pool)
                loss = tf.reduce_sum(tf.sin(outputs))
            return loss, tape.gradient(loss, list(parts))

        with tracing.active(one if lowered else None):
            if not twice:
                loss, found = gradients()
                return [loss, *found]
            with tf.GradientTape() as outer:
                outer.watch(parts)
                loss, found = gradients()
                squares = tf.add_n([tf.reduce_sum(g**2) for g in found])
            return [loss, *found, *outer.gradient(squares, list(parts))]

    return [t.numpy() for t in run(tf.constant(1), *_parts(case))]


def _relu(x: Any, kernel: Any, bias: Any, stride: int, padding: str, pool: Any) -> Any:
    outputs = keras.ops.add(keras.ops.conv(x, kernel, stride, padding), bias)
    return keras.ops.max_pool(keras.ops.relu(outputs), pool)


def _plain(x: Any, kernel: Any, bias: Any, stride: int, padding: str, pool: Any) -> Any:
    del bias
    return keras.ops.max_pool(keras.ops.conv(x, kernel, stride, padding), pool)


def _branches(x: Any, kernel: Any, bias: Any, *settings: Any) -> Any:
    # The convolution's outputs have errors from elsewhere, too.
    stride, padding, pool = settings
    outputs = keras.ops.add(keras.ops.conv(x, kernel, stride, padding), bias)
    pooled = keras.ops.max_pool(keras.ops.relu(outputs), pool)
    return tf.reduce_sum(pooled) + tf.reduce_sum(outputs**2)


def _count_visits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    visits, visit = [], pooled._visit

    def counted(*args: Any) -> Any:
        visits.append(1)
        return visit(*args)

    monkeypatch.setattr(pooled, "_visit", counted)
    return visits


def _assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "case", [c if c == "cropped" else matrix(c)[0] for c in CASES], ids=list(CASES)
)
def test_gradients_equal_the_native_form(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = _count_visits(monkeypatch)
    ours = _results(case, _relu, True)
    assert len(visits) == 1
    if case == "cube":  # TensorFlow pools no float64 there
        monkeypatch.setattr(pooled, "errors_of", lambda tensor: None)
    _assert_equal(ours, _results(case, _relu, case == "cube"))


@pytest.mark.matrix
def test_gradients_of_gradients_equal_those_of_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visits = _count_visits(monkeypatch)
    ours = _results("strides", _relu, True, twice=True)
    assert len(visits) == 3
    # XLA has no second gradient of native max-pooling.
    monkeypatch.setattr(pooled, "errors_of", lambda tensor: None)
    _assert_equal(ours, _results("strides", _relu, True, twice=True))
    assert len(visits) == 3


@pytest.mark.matrix
def test_without_bias_and_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = _count_visits(monkeypatch)
    ours = _results("even", _with_zero_bias, True)
    _assert_equal(ours, _results("even", _with_zero_bias, False))
    assert len(visits) == 1


def _with_zero_bias(x: Any, kernel: Any, bias: Any, *settings: Any) -> Any:
    return _plain(x, kernel, bias, *settings) + 0 * tf.reduce_sum(bias)


def test_errors_from_elsewhere_take_matrix_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visits = _count_visits(monkeypatch)
    _assert_equal(_results("even", _branches, True), _results("even", _branches, False))
    assert not visits


def _reshaped(
    x: Any, kernel: Any, bias: Any, stride: int, padding: str, pool: Any
) -> Any:
    outputs: Any = keras.ops.add(keras.ops.conv(x, kernel, stride, padding), bias)
    n, height, width, filters = outputs.shape
    # Neither positions nor filters of the pooling are those of the convolution.
    other = keras.ops.reshape(outputs, (n, height, width * filters // 2, 2))
    return keras.ops.max_pool(keras.ops.relu(other), pool)


def test_errors_of_another_shape_take_matrix_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visits = _count_visits(monkeypatch)
    case = "filter after filter"
    _assert_equal(_results(case, _reshaped, True), _results(case, _reshaped, False))
    assert not visits


@pytest.mark.parametrize(("row", "size"), [(15, 8), (16, 1000)])
def test_short_rows_and_large_images_take_matrix_products(row: int, size: int) -> None:
    with tf.Graph().as_default(), tracing.active(tf.constant(1)):
        image, kernel = tf.zeros((1, size, size, row)), tf.zeros((1, 1, row, 2))
        outputs = pooled.convolved(image, kernel, (1, 1), (1, 1))
        assert outputs.op.type == "Reshape"  # no gradient of its own
        small = pooled.convolved(
            tf.zeros((1, 8, 8, 16)), tf.zeros((1, 1, 16, 2)), (1, 1), (1, 1)
        )
        assert small.op.type == "IdentityN"
