"""The coefficients of a block give what single updates give, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import FLOAT64
from tests.support.internals import blocks

LENGTH, INPUTS, OUTPUTS = 9, 4, 3


def _one_by_one(
    start: Any, x: Any, d: Any, m: float, nesterov: bool, factors: Any, applies: Any
) -> Any:
    w, v = start
    for x_i, d_i, f, applied in zip(x, d, factors, applies, strict=True):
        if applied:
            change = np.outer(x_i, d_i)
            v = m * v - change
            w = f * w + (m * v - change if nesterov else v)
    return w, v


@pytest.mark.parametrize("momentum", [0.0, 0.875, 1.0])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_a_block(momentum: float, nesterov: bool, decays: bool, skips: bool) -> None:
    """Other rows than those that applied hold garbage; without coefficients, zeros."""
    if nesterov and not momentum:
        return
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, INPUTS, OUTPUTS))
    x, d = rng.normal(size=(LENGTH, INPUTS)), rng.normal(size=(LENGTH, OUTPUTS))
    v = v if momentum else np.zeros_like(v)
    factors = 1 - 0.1 * rng.random(LENGTH) if decays else np.ones(LENGTH)
    applies = rng.random(LENGTH) > 0.4 if skips else np.ones(LENGTH, bool)
    zeros = tf.zeros((LENGTH,), tf.float64)
    now = blocks.first_coefficients(zeros, bool(momentum), decays)
    for row in range(LENGTH - 2):  # a part of a block
        m = tf.constant(momentum, tf.float64) if momentum else None
        factor = tf.constant(factors[row]) if decays else None
        may = tf.constant(bool(applies[row])) if skips else None
        now = blocks.advance_coefficients(
            now, tf.constant(row), m, nesterov, factor, may
        )
        last = slice(0, row + 1)
        expected_w, expected_v = _one_by_one(
            (w, v), x[last], d[last], momentum, nesterov, factors[last], applies[last]
        )
        found = w * (now.weight if decays else 1.0)
        has_applied = applies & (np.arange(LENGTH) <= row)
        shares: Any = now.changes if momentum or decays else has_applied
        found = found - x.T @ (np.asarray(shares)[:, None] * d)
        if momentum:
            found = found + np.asarray(now.carried) * v
            kicks = x.T @ (np.asarray(now.kicks)[:, None] * d)
            found_v = np.asarray(now.velocity) * v - kicks
            np.testing.assert_allclose(found_v, expected_v, rtol=FLOAT64, atol=FLOAT64)
        np.testing.assert_allclose(found, expected_w, rtol=FLOAT64, atol=FLOAT64)
