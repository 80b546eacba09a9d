"""Dynamic loss scaling, as `keras.optimizers.LossScaleOptimizer` has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._rule.accumulate import Overwrite
from keras_sgd_plus._rule.part import Tensor, Update, both, select
from keras_sgd_plus._rule.rule import Rule, Updated

ops: Any = keras.ops  # its annotations name tensors of every backend


class LossScale(NamedTuple):
    """The state of a `LossScaleOptimizer`."""

    step_counter: Tensor  # () int
    dynamic_scale: Tensor  # () float32


def apply_scaled(
    rule: Rule,
    update: Update,
    loss_scale: LossScale,
    dynamic_growth_steps: int,
    apart: Any = (),
) -> tuple[Updated, LossScale]:
    """One update with gradients of a scaled loss.

    Where a gradient is not finite, nothing changes and the scale is halved.

    Args:
        rule: the rule.
        update: as it begins, with scaled gradients.
        loss_scale: the state before.
        dynamic_growth_steps: updates in a row after which the scale is doubled.
        apart: as for `Rule`.
    """
    counter, scale = loss_scale
    # Rows without a gradient are zeros, and finite.
    finite = ops.all(ops.stack([g.all_finite() for g in update.gradients.values()]))
    overwrite = rule.find(Overwrite)
    overwritten = frozenset() if overwrite is None else overwrite.indices
    unscaled = {
        i: g if i in overwritten else g.scaled(lambda v: ops.divide(v, scale))
        for i, g in update.gradients.items()
    }
    applied = rule(replace(update, gradients=unscaled), apart)
    kept = tf.nest.map_structure(
        lambda new, old: select(finite, new, old), applied.state, update.state
    )
    grows = tf.logical_and(finite, tf.equal(counter, dynamic_growth_steps - 1))
    advanced = tf.where(grows, tf.zeros_like(counter), counter + 1)
    counter = tf.where(finite, advanced, tf.zeros_like(counter))
    factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
    updated = applied._replace(state=kept, applies=both(applied.applies, finite))
    return updated, LossScale(counter, scale * factor)
