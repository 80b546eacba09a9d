"""The rule holds back an update if told to, and no subclass may replace it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import (
    _update,
)
from tests.support.messages import (
    ErrorRow,
    Row,
    assert_refused,
    error_rows,
    fit,
)
from tests.support.twins import linear_model


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_held_update_only_counts(is_held: bool, steps: int | None) -> None:
    """All options are on; the second variable is one that its gradient overwrites."""
    rule = _update.Rule(
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
        clipnorm=None,
        clipvalue=0.5,
        global_clipnorm=None,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=1,
        loss_scale_factor=2.0,
        accumulation_steps=steps,
        decays=(True, False),
        overwrites=(False, True),
        constraints=(keras.constraints.MaxNorm(0.1), None),
    )

    def tensors(value: float) -> list[Any]:
        return [tf.fill((2,), value), tf.fill((2,), value)]

    sums = tensors(0.25) if steps else [None, None]
    counter = tf.constant(3, tf.int64)
    state = _update.State(
        tensors(1.0), [tf.fill((2,), 0.5), None], tensors(2.0), sums, counter
    )
    rates = [tf.constant(0.1)] * 2
    new = _update.apply_gradients(
        rule, state, tensors(7.0), rates, tf.constant(is_held), tf.constant(True)
    )
    assert int(new.iterations) == 4
    for name in ("weights", "velocities", "averages", "accumulators"):
        pairs = zip(getattr(new, name), getattr(state, name), strict=True)
        for after, before in pairs:
            if before is not None:
                assert np.array_equal(after, before) == is_held, name


class OwnRule(SGDPlus):
    """Overrides a method that the loop does not call."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        variable.assign(variable * 0)


def _fit_subclass(model: Any) -> None:
    model.compile(OwnRule(), "mse")
    fit(model)


ERRORS: dict[str, ErrorRow] = {
    "overridden": (
        linear_model,
        ("overridden", _fit_subclass, NotImplementedError, "examples_per_update=None"),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)
