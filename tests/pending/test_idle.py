"""Idle updates made at once equal those that NumPy makes one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.support.internals import table_rows
from tests.support.tiers import matrix

MOST = 1_500  # updates of a batch


# Momentum and decay; a is 1 - decay, the factor of a row in one update.
PAIRS = [
    (0.0, 0.0),
    (0.0, 0.001),
    (0.5, 0.5),  # momentum = a
    (0.5, 0.5 + 2**-40),  # nearly
    (0.75, 1.0),  # a = 0
    (0.75, 1.5),  # a < 0
    (0.875, 0.0),
    (0.875, 0.01),
    (0.9990234375, 0.25),
    (1.0, 0.0),  # momentum = a = 1
    (1.0, 0.125),
]
DEFAULT = [(0.875, 0.01)]


def _once(momentum: float, nesterov: bool, decay: Any) -> Any:
    return table_rows.once(tf.constant(momentum, tf.float64), nesterov, decay)


def _single(momentum: float, nesterov: bool, decay: float) -> Any:
    return _once(momentum, nesterov, tf.constant(decay, tf.float64))


def _one_by_one(
    row: Any, velocity: Any, momentum: float, nesterov: bool, decays: Any
) -> tuple[Any, Any]:
    """Keras's rule with a gradient of zero: decay, velocity, step."""
    for decay in decays:
        row = row - row * decay
        velocity = momentum * velocity
        row = row + (momentum * velocity if nesterov else velocity)
    return row, velocity


@pytest.mark.parametrize("nesterov", [*matrix(False), True])
@pytest.mark.parametrize(
    ("momentum", "decay"),
    [
        pytest.param(*pair, marks=() if pair in DEFAULT else (pytest.mark.matrix,))
        for pair in PAIRS
    ],
)
def test_equal_updates(momentum: float, decay: float, nesterov: bool) -> None:
    """Any number of updates is compared; powers of 0.5 underflow."""
    clock = table_rows.ConstantDecay(
        _single(momentum, nesterov, decay), tf.constant(MOST)
    )
    row, velocity = np.random.default_rng(0).normal(size=(2, 4))
    rows, velocities = [row], [velocity]
    for _ in range(MOST):
        step = _one_by_one(rows[-1], velocities[-1], momentum, nesterov, [decay])
        rows.append(step[0])
        velocities.append(step[1])
    gaps = np.random.default_rng(1).permutation(MOST + 1)
    idle = clock.since(tf.constant(MOST), tf.constant(MOST - gaps, tf.int32))
    weight, carried, moved = (np.asarray(each)[:, None] for each in idle)
    new = weight * row + carried * velocity
    np.testing.assert_allclose(new, np.array(rows)[gaps], rtol=1e-12, atol=1e-12)
    expected = np.array(velocities)[gaps]
    # TensorFlow makes zeros of what is smaller than 2e-308.
    np.testing.assert_allclose(moved * velocity, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("momentum", [0.0, 0.875, 1.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_that_differ(momentum: float, nesterov: bool) -> None:
    """The learning rate falls and some updates are skipped, between any two moments."""
    rng = np.random.default_rng(1)
    decays = 0.05 * 0.998 ** np.arange(MOST) * rng.uniform(0.5, 1, MOST)
    applies = rng.random(MOST) > 0.1
    moments = [0, 1, 255, 256, 257, 700, int(applies.sum())]

    def trace(decays: Any, applies: Any) -> Any:
        clock = table_rows.ScheduledDecay(tf.constant(MOST))
        asked = tf.constant(moments)
        none = tf.zeros((len(moments), len(moments)), tf.float64)

        def body(i: Any, state: Any, found: Any) -> Any:
            single = _once(momentum, nesterov, decays[i])
            state = clock.advance(state, single, applies[i])
            now = tf.equal(asked, clock.count(state))[:, None]
            rows = clock.since(state, tf.minimum(asked, clock.count(state)))
            found = [
                tf.where(now, tf.broadcast_to(new[None], old.shape), old)
                for new, old in zip(rows, found, strict=True)
            ]
            return i + 1, state, found

        start = (0, clock.start(), [none, none, none])
        return tf.while_loop(lambda i, *_: i < MOST, body, start)[2]

    compiled: Any = tf.function(trace, jit_compile=True, autograph=False)
    weight, carried, moved = compiled(tf.constant(decays), tf.constant(applies))
    counted = decays[applies]
    for n, end in enumerate(moments[1:], 1):
        for s, start in enumerate(moments[: n + 1]):
            row, velocity = rng.normal(size=2)
            part = counted[start:end]
            expected = _one_by_one(row, velocity, momentum, nesterov, part)
            new = weight[n, s] * row + carried[n, s] * velocity
            np.testing.assert_allclose(new, expected[0], rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(
                moved[n, s] * velocity, expected[1], rtol=1e-12, atol=0
            )
