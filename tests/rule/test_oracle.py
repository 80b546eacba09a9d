"""The oracle gives numbers derived by hand, and rejects wrong rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.cases import SGD_ARGS
from tests.support.oracle import Oracle
from tests.support.twins import dense_data


def test_two_updates_by_hand() -> None:
    # One weight w=1, bias b=0, lr 0.1, momentum 0.5, examples (x=2, y=0), (x=1, y=1).
    # 1: p=2, dp=2*2=4, gw=8, gb=4: vw=-0.8, vb=-0.4: w=0.2, b=-0.4
    # 2: p=-0.2, dp=2*(-1.2)=-2.4, gw=gb=-2.4: vw=-0.4+0.24=-0.16, vb=-0.2+0.24=0.04
    #    w=0.04, b=-0.36
    oracle = Oracle([np.ones((1, 1)), np.zeros(1)], 0.1, 0.5)
    oracle.visit(np.array([[2.0], [1.0]]), np.array([[0.0], [1.0]]), [0, 1])
    np.testing.assert_allclose(oracle.weights[0], [[0.04]], atol=1e-15)
    np.testing.assert_allclose(oracle.weights[1], [-0.36], atol=1e-15)
    np.testing.assert_allclose(oracle.losses, [4.0, 1.44], atol=1e-15)


def test_gradients_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    oracle = Oracle([rng.normal(size=s) for s in ((5, 3), (3,), (3, 2), (2,))])
    x, y = (a[:4].astype("float64") for a in dense_data())
    grads, _ = oracle.gradients(x, y)
    for weight, grad in zip(oracle.weights, grads, strict=True):
        for position in np.ndindex(weight.shape):
            weight[position] += 1e-6
            above = oracle.gradients(x, y)[1]
            weight[position] -= 2e-6
            below = oracle.gradients(x, y)[1]
            weight[position] += 1e-6
            assert abs((above - below) / 2e-6 - grad[position]) < 1e-8


class _LateRate(Oracle):
    """Torch's momentum: the learning rate outside velocity."""

    def step(self, grads: Any, cap: float = np.inf) -> None:
        del cap
        rate = self.learning_rate
        lr = rate(self.iterations) if callable(rate) else rate
        for i, g in enumerate(grads):
            self.velocities[i] = self.momentum * self.velocities[i] + g
            self.weights[i] = self.weights[i] - lr * self.velocities[i]


class _LateDecay(Oracle):
    """Weight decay after the step instead of before it."""

    def step(self, grads: Any, cap: float = np.inf) -> None:
        decay, self.weight_decay = self.weight_decay, 0.0
        super().step(grads, cap)
        self.weight_decay = decay
        assert not callable(self.learning_rate)
        self.weights = [w * (1 - self.learning_rate * decay) for w in self.weights]


class _LateAverage(Oracle):
    """An average that starts from zero."""

    def average(self, count: int) -> None:
        super().average(count + 1)


WRONG: dict[str, tuple[type[Oracle], dict[str, Any], list[int] | None]] = {
    "rate outside velocity": (
        _LateRate,
        {"momentum": 0.9, "learning_rate": lambda t: 0.05 / (1 + t)},
        None,
    ),
    "decay after step": (_LateDecay, SGD_ARGS["decay_momentum"], None),
    "average from zero": (_LateAverage, SGD_ARGS["ema"], None),
    "two examples swapped": (Oracle, SGD_ARGS["momentum"], [1, 0, *range(2, 12)]),
    "an example twice": (Oracle, SGD_ARGS["momentum"], [0, 0, *range(2, 12)]),
}


@pytest.mark.parametrize(("wrong", "arguments", "order"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_far_off(
    wrong: type[Oracle], arguments: dict[str, Any], order: list[int] | None
) -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=s) for s in ((5, 3), (3,), (3, 2), (2,))]
    x, y = dense_data(12)
    right, other = Oracle(list(start), **arguments), wrong(list(start), **arguments)
    right.visit(x, y, range(12))
    other.visit(x, y, order or range(12))
    right.finish()
    other.finish()
    gap = max(
        np.abs(a - b).max() for a, b in zip(right.weights, other.weights, strict=True)
    )
    assert gap > 1e-4  # tolerances of the comparisons are 1e-12 and 1e-6
