"""Loss scaling: it skips an example whose gradient overflows, not its batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from tests.support.stories import Run, run_pair
from tests.support.twins import (
    Pair,
    assert_engaged,
    assert_same,
    dense_data,
    linear_model,
    train_pair,
)
from tests.support.versions import TENSORFLOW

N = 20
# With TensorFlow 2.17 the loss itself overflows, and fit says so.
_INFINITE = "ignore" if TENSORFLOW <= (2, 17) else "error"


def _overflowing(factor: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = dense_data(N)
    x[[3, 4, 11]] *= factor
    return x, y


@pytest.mark.filterwarnings(f"{_INFINITE}:The loss should be finite")
def test_overflow_in_mixed_precision(engagements: list[str]) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    x, y = _overflowing(2e3)
    pair = train_pair(
        lambda: keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(2),
                layers.Activation("linear", dtype="float32"),
            ]
        ),
        x,
        y,
        sgd={"learning_rate": 0.001},
        compile={"jit_compile": True},
        our_compile={"jit_compile": False},
    )
    assert_same(pair, tolerance=5e-3, logs=2e-3)
    _assert_skipped(pair, engagements)


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:The loss should be finite")  # it overflows
def test_dynamic_growth_of_the_loss_scale(engagements: list[str]) -> None:
    """In float32 the counter, the scale and the weights are exact."""

    def story(run: Run) -> None:
        optimizer = keras.optimizers.LossScaleOptimizer(
            run.optimizer(momentum=0.9), initial_scale=8.0, dynamic_growth_steps=3
        )
        run.compile(optimizer)
        run.fit(x, y)

    x, y = _overflowing(1e30)
    pair = run_pair(linear_model, story)
    pair.our_logs = pair.their_logs = {}  # the loss is infinite
    assert_same(pair)
    _assert_skipped(pair, engagements)


def _assert_skipped(pair: Pair, engagements: list[str]) -> None:
    ours, theirs = pair.ours.optimizer, pair.theirs.optimizer
    assert isinstance(ours, keras.optimizers.LossScaleOptimizer)
    updates = int(theirs.inner_optimizer._iterations)
    assert 0 < updates < N  # some were skipped
    assert_engaged(pair, engagements, updates)
    for name in ("step_counter", "dynamic_scale"):
        assert float(getattr(ours, name)) == float(getattr(theirs, name))
    assert float(ours.dynamic_scale) != ours.initial_scale
