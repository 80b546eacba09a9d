"""The loop judges a product by its factors, which costs less."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.bad_examples import (
    compiled,
    dense,
)
from tests.support.internals import gradient, update
from tests.support.twins import dense_data

SPECIAL = [0.0, 1.0, -3e38, 1e-45, np.nan, np.inf, -np.inf, 1e20, -1e-20]


@pytest.mark.parametrize("length", [3, 100])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_outer_products_are_judged_by_their_factors(
    transposed: bool, jit_compile: bool, length: int
) -> None:
    """NumPy, which looks at every entry of the product, finds the same."""

    @tf.function(jit_compile=jit_compile)
    def judged(a: Any, b: Any) -> tuple[Any, Any]:
        product = tf.matmul(a, b, transpose_a=True) if transposed else tf.matmul(a, b)
        outer: Any = gradient.as_gradient(product, factored_norms=True)
        assert isinstance(outer, gradient.OuterGradient)
        return outer.all_finite(), product

    verdicts = set()
    for one, other in itertools.product(SPECIAL, SPECIAL):
        a = np.full((1, length), -0.5, "float32")
        a[0, :2] = 2.0, one
        b = np.array([[other, 1.5]], "float32")
        found, _ = judged(a if transposed else a.T, b)
        with np.errstate(all="ignore"):
            expected = bool(np.isfinite(a.T * b).all())
        assert bool(found) == expected, (one, other)
        verdicts.add(expected)
    assert verdicts == {True, False}


def test_kernel_gradients_are_judged_by_their_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop recognises gradients of Dense kernels, or an update costs twice."""
    found = []
    as_gradient = gradient.as_gradient

    def noted(tensor: Any, factored_norms: bool) -> Any:
        kind = as_gradient(tensor, factored_norms)
        found.append((tensor.shape.rank, isinstance(kind, gradient.OuterGradient)))
        return kind

    monkeypatch.setattr(update, "as_gradient", noted)
    x, y = dense_data(8)
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip"))
    model.fit(x, y, verbose=0)
    assert {is_outer for rank, is_outer in found if rank == 2} == {True}
    assert {is_outer for rank, is_outer in found if rank == 1} == {False}
