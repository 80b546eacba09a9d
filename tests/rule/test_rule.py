"""The rule holds back an update if told to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import Rule, State, Update, gradient
from tests.support.numbers import numbers_of


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("steps", [None, 2])
def test_an_update_that_does_not_count_only_counts_itself(
    counts: bool, steps: int | None
) -> None:
    """All options are on; the second variable is one that its gradient overwrites."""
    optimizer = SGDPlus(
        0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
        clipvalue=0.5,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=1,
        loss_scale_factor=2.0,
        gradient_accumulation_steps=steps,
    )
    constraint = keras.constraints.MaxNorm(0.1)
    weights = [keras.Variable([1.0, 1.0]), keras.Variable([1.0, 1.0])]
    weights[0].constraint = constraint
    weights[1].overwrite_with_gradient = True
    optimizer.exclude_from_weight_decay([weights[1]])
    optimizer.build(weights)

    def tensors(value: float) -> list[Any]:
        return [tf.fill((2,), value), tf.fill((2,), value)]

    slots = {
        "velocities": [tf.fill((2,), 0.5), None],
        "averages": tensors(2.0),
        "accumulators": tensors(0.25),
    }
    if not steps:
        del slots["accumulators"]
    state = State(tensors(1.0), slots, tf.constant(3, tf.int64))
    gradients = dict(enumerate(map(gradient.DenseGradient, tensors(7.0))))
    rates = [tf.constant(0.1)] * 2
    may_change, started = tf.constant(counts), tf.constant(True)
    update = Update(state, gradients, rates, may_change, started)
    update = replace(update, numbers=numbers_of(optimizer))
    new = Rule.of(optimizer, weights)(update).state
    assert int(new.iterations) == 4
    columns = [(new.weights, state.weights)]
    columns += [(new.slots[name], state.slots[name]) for name in slots]
    for after_column, before_column in columns:
        for after, before in zip(after_column, before_column, strict=True):
            if before is not None:
                assert np.array_equal(after, before) != counts
