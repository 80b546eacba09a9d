"""The kinds of a gradient agree: what is measured by factors is what entries say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import Rule, State, Update, gradient
from tests.support.numbers import numbers_of
from tests.support.twins import dense_data

LIMIT = 0.5
NORMAL = np.random.default_rng(0).normal(size=(2, 70))


def _outer(a: Any, b: Any) -> Any:
    product = tf.matmul(a, b, transpose_a=True)
    found = gradient.as_gradient(product, factored_norms=True)
    assert isinstance(found, gradient.OuterGradient)
    return found


def _traced(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    trace: Any = tf.function(lambda a, b: function(_outer(a, b)), jit_compile=True)
    return lambda a, b: trace(tf.constant(a[None]), tf.constant(b[None])).numpy()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_norm_of_an_outer_product(scale: float) -> None:
    """Against NumPy, at 1e-12 in float64."""
    a, b = NORMAL[0] * scale, NORMAL[1, :5]
    found = _traced(lambda g: g.squared_norm())(a, b)
    np.testing.assert_allclose(found, np.sum(np.outer(a, b) ** 2), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(1e25, 1e-25), (1e37, 0.0), (1e-30, 1e30)])
def test_norm_of_vectors_whose_squares_overflow(sizes: tuple[float, float]) -> None:
    """In float32, against NumPy in float64; the entries themselves are small."""
    a, b = (n * s for n, s in zip((NORMAL[0], NORMAL[1, :5]), sizes, strict=True))
    found = _traced(lambda g: g.norm())(a.astype("float32"), b.astype("float32"))
    np.testing.assert_allclose(found, np.linalg.norm(np.outer(a, b)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_two(dtype: str) -> None:
    """Exact, and with an inverse that is no subnormal number."""
    info = np.finfo(dtype)
    sizes = [1.0, 1.5, 2.0, 3.9e5, 0.3, 0.0, float(info.max), np.inf, np.nan]
    found = gradient.power_of_two(tf.constant(sizes, dtype)).numpy()
    largest = 2.0 ** (info.maxexp - 2)
    assert found.tolist() == [1, 1, 2, 2**18, 0.25, 1, largest, 1, 1]
    assert 1 / largest >= info.tiny


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 0.0])
@pytest.mark.parametrize("scaled_by", [1.0, 0.25])
def test_clipping_an_outer_product(scale: float, scaled_by: float) -> None:
    """Against NumPy; also after a scaling, as of `loss_scale_factor`."""
    a, b = NORMAL[0], NORMAL[1, :5] * scale
    scaled = np.outer(a, b) * scaled_by
    expected = scaled * LIMIT / max(np.linalg.norm(scaled), LIMIT)

    def clipped(found: Any) -> Any:
        return found.scaled(lambda v: v * scaled_by).clipped_by_norm(LIMIT).dense()

    np.testing.assert_allclose(_traced(clipped)(a, b), expected, rtol=1e-12)


SPECIAL = [0.0, 1.0, -3e38, 1e-45, np.nan, np.inf, 1e20]


@pytest.mark.parametrize("length", [2, 70])
def test_special_values_are_clipped_alike(length: int) -> None:
    """A gradient that is not finite, or overflows, ends as with the dense kind."""

    def both(found: Any) -> Any:
        dense = gradient.DenseGradient(found.dense())
        kinds = (found, dense)
        return tf.stack([kind.clipped_by_norm(LIMIT).dense() for kind in kinds])

    run, compared = _traced(both), 0
    for one, other in itertools.product(SPECIAL, SPECIAL):
        a = np.full(length, 0.5, "float32")
        a[-1] = one
        b = np.array([other, 1.5], "float32")
        with np.errstate(all="ignore"):
            product = np.outer(a, b)
            squares = np.sum(product**2)
        by_factors, dense = run(a, b)
        if not np.isfinite(product).all():
            assert not np.isfinite(by_factors).all()
            assert not np.isfinite(dense).all()
        elif np.isfinite(squares):  # else only the dense norm overflows
            np.testing.assert_allclose(by_factors, dense, rtol=1e-5, atol=1e-30)
            compared += 1
    assert compared > 8


def test_kinds() -> None:
    """Half precision is dense: the norm of one factor would overflow there."""

    @tf.function
    def look(a: Any, half: Any) -> None:
        outer, rows = tf.matmul(a, a, transpose_a=True), tf.gather(a, [0])
        assert isinstance(gradient.as_gradient(outer), gradient.OuterGradient)
        assert isinstance(gradient.as_gradient(rows), gradient.DenseGradient)
        product = tf.matmul(half, half, transpose_a=True)
        assert isinstance(gradient.as_gradient(product), gradient.DenseGradient)
        slices = tf.IndexedSlices(a, tf.constant([0]), tf.constant([9, 3]))
        assert isinstance(gradient.as_gradient(slices), gradient.RowsGradient)
        assert gradient.as_gradient(None) is None

    look(tf.ones((1, 3)), tf.ones((1, 3), tf.float16))
    assert isinstance(gradient.as_gradient(tf.ones(3)), gradient.DenseGradient)


@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_clipping_in_half_precision(option: str) -> None:
    """The squares of the inputs overflow float16, those of the gradient do not."""
    x, _ = dense_data(8)
    layer = keras.layers.Dense(2, kernel_initializer="zeros", dtype="float16")
    model = keras.Sequential([keras.Input(x.shape[1:], dtype="float16"), layer])
    model.compile(SGDPlus(1e-5, **{option: 1.0}), "mse")
    model.fit(300 * np.sign(x), np.full((8, 2), 0.02), verbose=0)
    kernel = layer.get_weights()[0]
    assert np.isfinite(kernel).all()
    assert np.abs(kernel).max() > 1e-6


@pytest.mark.matrix
def test_scaling_keeps_the_kind() -> None:
    """The norm of a scaled gradient is the scaled norm, with no product formed."""
    optimizer = SGDPlus(0.1, loss_scale_factor=4.0, clipnorm=1e9)
    weight = keras.Variable(np.zeros((70, 5)), dtype="float64")
    optimizer.build([weight])
    kinds: list[type] = []

    @tf.function
    def run(a: Any, b: Any) -> Any:
        rule = Rule.of(optimizer, [weight])
        zero = tf.zeros((70, 5), tf.float64)
        state = State([zero], {}, tf.constant(0, tf.int64))
        update = Update(state, {0: _outer(a, b)}, [tf.constant(0.1)])
        update = replace(update, numbers=numbers_of(optimizer))
        for part in rule.gradient_parts:
            update = part(update)
            kinds.append(type(update.gradients[0]))
        return rule(update).state.weights[0]

    run(tf.constant(NORMAL[:1]), tf.constant(NORMAL[1:, :5]))
    assert kinds == [gradient.OuterGradient] * 2
