"""Applies the rule of an optimizer to the gradients of one group."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import tensorflow as tf

from keras_sgd_plus._loop.backward import BackwardResult, check_gradients
from keras_sgd_plus._loop.example_update import ExampleUpdate
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._nonfinite import Guard
from keras_sgd_plus._pending import Shown
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._records import progress
from keras_sgd_plus._rule import (
    LossScale,
    State,
    Update,
    Updated,
    apply_scaled,
    capped_share,
)


class Applied(NamedTuple):
    """The results of a rule, beside the new values in the scope.

    Attributes:
        before: the state that it began with.
        has_started: () bool, whether an update has been applied by now; None without a
            guard.
        pending: weights whose updates wait, after this one.
    """

    before: State
    has_started: Tensor
    pending: Shown | None


def apply_rule(
    update: ExampleUpdate,
    scope: Scope,
    found: BackwardResult,
    guard: Guard | None,
    pending: Shown | None,
) -> Applied:
    """Applies the rule, and puts new weights and state into the scope.

    Args:
        update: the update.
        scope: open.
        found: by the backward pass.
        guard: None under nonfinite="propagate".
        pending: weights whose updates wait, if there are any.
    """
    before = update.variables.read(scope)
    if not update.carry.trainable:
        warnings.warn("The model does not have any trainable weights.")
        return Applied(before, None if guard is None else guard.has_started, pending)
    check_gradients(found.gradients, update.carry.trainable)
    gradients = found.by_index(update)
    may_change = had_started = has_started = None
    if guard is not None:
        gradients = guard.gradients(update.rule, gradients)
        may_change = guard.may_change(update.rule, before)
        had_started = guard.has_started
        has_started = guard.started_after(update.rule, may_change)
    rate = tf.convert_to_tensor(update.optimizer.learning_rate)
    rates = [rate] * len(before.weights)
    if found.readers is not None:
        for i in gradients:
            rates[i] = found.readers.rate_after(before.weights[i], rate)
    begun = Update(
        before,
        gradients,
        rates,
        may_change,
        had_started,
        numbers=update.numbers,
        loss=found.loss,
    )
    updated = _updated(update, scope, begun, pending)
    if pending is not None:
        pending = pending.step(updated.waiting, updated.learning_rates, updated.applies)
    update.variables.write(scope, updated.state)
    if update.counts is not None:
        (counts,) = scope.values([update.counts])
        count = capped_share.counted
        counts = count(counts, updated.capped, found.loss, updated.applies)
        scope.add_update((update.counts, counts))
    if update.progress is not None:
        (sums,) = scope.values([update.progress])
        applies = updated.applies
        sums = progress.added(sums, found.loss, before.iterations, applies)
        scope.add_update((update.progress, sums))
    return Applied(before, has_started, pending)


def _updated(
    update: ExampleUpdate, scope: Scope, begun: Update, pending: Shown | None
) -> Updated:
    # Under a LossScaleOptimizer its state goes into the scope, too.
    apart = frozenset[int]() if pending is None else pending.weights
    outer = update.outer
    if outer is update.optimizer:
        return update.rule(begun, apart)
    variables = (outer.step_counter, outer.dynamic_scale)
    loss_scale = LossScale(*scope.values(variables))
    steps = outer.dynamic_growth_steps
    updated, new = apply_scaled(update.rule, begun, loss_scale, steps, apart)
    for pair in zip(variables, new, strict=True):
        scope.add_update(pair)
    return updated
