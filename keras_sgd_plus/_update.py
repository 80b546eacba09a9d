"""The update rule: weights, optimizer state and gradients in, new values out.

Nothing here reads or writes a variable. The algebra and its order are those of
`keras.optimizers.SGD` (Keras 3.15), so that a run agrees with Keras at `batch_size=1`:
overwrite, unscale, accumulate, clip, decay, step, average, constrain, count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

ops: Any = keras.ops  # its annotations name tensors of every backend
Tensor = Any  # tf.Tensor; a gradient may also be tf.IndexedSlices or None


@dataclass(frozen=True)
class Rule:
    """What is fixed while a loop is compiled; tuples have an entry per variable."""

    momentum: float
    nesterov: bool
    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    accumulation_steps: int | None
    decays: tuple[bool, ...]
    overwrites: tuple[bool, ...]  # `overwrite_with_gradient` (float8 scales)
    constraints: tuple[Callable[[Tensor], Tensor] | None, ...]

    def decay(self, index: int) -> float | None:
        """The weight decay of a variable."""
        return self.weight_decay if self.decays[index] else None


class State(NamedTuple):
    """Weights and optimizer state; each list has an entry per trainable variable."""

    weights: list[Tensor]
    velocities: list[Tensor | None]  # momentum's state, shape of the weight
    averages: list[Tensor | None]  # `use_ema`, shape of the weight
    accumulators: list[Tensor | None]  # sums of gradients, shape of the weight
    iterations: Tensor  # () int64, raw: not divided by accumulation_steps


class LossScale(NamedTuple):
    """The state of a `LossScaleOptimizer`."""

    step_counter: Tensor  # () int
    dynamic_scale: Tensor  # () float32


def apply_gradients(
    rule: Rule,
    state: State,
    gradients: list[Tensor | None],
    learning_rates: list[Tensor],
    is_held: Tensor | None = None,
    has_started: Tensor | None = None,
    tables: Any = None,
) -> State:
    """One update. The lists have an entry per variable.

    Args:
        gradients: None for a variable that keeps its value.
        is_held: () bool, whether nothing but the counter may change. Each choice is
            made where a value is computed, since the next one is computed from it: a
            choice at the end would keep old and new values of all. Gradients that are
            scattered must be zero then; a choice would copy the table.
        has_started: () bool, whether any update came before, where the counter alone
            does not say it.
        tables: makes the step for weights that have a `tf.IndexedSlices` and are among
            its `slots`, in place of the entries of the state, which stay as they are.
    """
    # 1. Overwrite the variables whose "gradient" is their next value.
    weights, velocities, averages, accumulators = (list(v) for v in state[:4])
    is_update, counts = None, None if is_held is None else tf.logical_not(is_held)
    if rule.accumulation_steps:
        is_update = tf.equal((state.iterations + 1) % rule.accumulation_steps, 0)
    applies = _both(is_update, counts)
    stepped = []
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        if rule.overwrites[i]:
            weights[i], accumulators[i] = _overwritten(
                weights[i], gradient, accumulators[i], is_update
            )
            weights[i] = _select(counts, weights[i], state.weights[i])
        else:
            stepped.append(i)
    if stepped:
        # 2. Unscale.
        picked = [gradients[i] for i in stepped]
        if rule.loss_scale_factor is not None:
            factor = rule.loss_scale_factor
            picked = [entrywise(g, lambda v: v / factor) for g in picked]
        # 3. Accumulate; the rest of an update happens every accumulation_steps.
        if is_update is not None:
            for gradient, i in zip(picked, stepped, strict=True):
                accumulators[i] = tf.convert_to_tensor(gradient) + accumulators[i]
            picked = [accumulators[i] / rule.accumulation_steps for i in stepped]
            accumulators = [
                None if a is None else tf.where(is_update, tf.zeros_like(a), a)
                for a in accumulators
            ]
        # 4. Clip, decay, step.
        apart = () if tables is None else tables.slots
        clipped = dict(zip(stepped, clip(rule, picked), strict=True))
        if tables is not None:
            tables.step(clipped, learning_rates, applies)
        for i, gradient in clipped.items():
            if i in apart:
                continue
            weights[i], velocities[i] = step(
                rule, i, weights[i], velocities[i], gradient, learning_rates[i], applies
            )
        # 5. Average.
        if rule.use_ema:
            weights, averages = _averaged(
                rule, state.iterations, weights, averages, counts, has_started
            )
        # 6. Constrain.
        for i in stepped:
            constraint = rule.constraints[i]
            if constraint is not None:
                constrained = tf.cast(constraint(weights[i]), weights[i].dtype)
                weights[i] = _select(counts, constrained, weights[i])
    # 7. Count.
    accumulators = [
        _select(counts, new, old)
        for new, old in zip(accumulators, state.accumulators, strict=True)
    ]
    return State(weights, velocities, averages, accumulators, state.iterations + 1)


def apply_scaled_gradients(
    rule: Rule,
    state: State,
    gradients: list[Tensor | None],
    learning_rates: list[Tensor],
    loss_scale: LossScale,
    dynamic_growth_steps: int,
    is_held: Tensor | None = None,
    has_started: Tensor | None = None,
    tables: Any = None,
) -> tuple[State, LossScale]:
    """One update under dynamic loss scaling: skipped where a gradient is not finite."""
    counter, scale = loss_scale
    present = [g for g in gradients if g is not None]
    # Rows without a gradient are zeros, and finite.
    finite = ops.all(ops.stack([ops.all(ops.isfinite(_values(g))) for g in present]))
    unscaled = [
        g if g is None or overwrites else ops.divide(g, scale)
        for g, overwrites in zip(gradients, rule.overwrites, strict=True)
    ]
    if tables is not None:
        tables.hold(tf.logical_not(finite))
    applied = apply_gradients(
        rule, state, unscaled, learning_rates, is_held, has_started, tables
    )
    kept = tf.nest.map_structure(
        lambda new, old: _select(finite, new, old), applied, state
    )
    grows = tf.logical_and(finite, tf.equal(counter, dynamic_growth_steps - 1))
    advanced = tf.where(grows, tf.zeros_like(counter), counter + 1)
    counter = tf.where(finite, advanced, tf.zeros_like(counter))
    factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
    return kept, LossScale(counter, scale * factor)


def clip(rule: Rule, gradients: list[Tensor]) -> list[Tensor]:
    """Clips as the one clipping option that is set says; zero means off."""
    if rule.clipnorm and rule.clipnorm > 0:
        return [tf.clip_by_norm(g, rule.clipnorm) for g in gradients]
    if rule.global_clipnorm and rule.global_clipnorm > 0:
        limit = rule.global_clipnorm
        squares = [ops.sum(ops.square(_values(g))) for g in gradients]
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        # The added zero turns NaN where the norm is not finite, as in Keras.
        scale = limit * ops.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)
        return [entrywise(g, lambda v: v * scale) for g in gradients]
    if rule.clipvalue and rule.clipvalue > 0:
        return [ops.clip(g, -rule.clipvalue, rule.clipvalue) for g in gradients]
    return gradients


def step(
    rule: Rule,
    index: int,
    weight: Tensor,
    velocity: Tensor | None,
    gradient: Tensor,
    learning_rate: Tensor,
    applies: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Decoupled weight decay, then the step of gradient descent with momentum.

    v = momentum * v - learning_rate * g;  w = w + v
    (nesterov: w = w + momentum * v - learning_rate * g)

    Both stay as they are unless it applies, () bool, but for what is scattered.
    """
    before, lr = weight, tf.cast(learning_rate, weight.dtype)
    decay = rule.decay(index)
    if decay is not None:
        weight = weight - weight * tf.cast(decay, weight.dtype) * lr
    change = ops.multiply(ops.cast(gradient, weight.dtype), lr)
    if velocity is None:
        if isinstance(change, tf.IndexedSlices):
            rows = tf.expand_dims(change.indices, -1)
            new = tf.tensor_scatter_nd_sub(weight, rows, change.values)
            # Weight decay has changed the whole table.
            return new if weight is before else _select(applies, new, before), None
        return _select(applies, weight - change, before), None
    change = tf.convert_to_tensor(change)
    momentum: Any = tf.cast(rule.momentum, weight.dtype)
    velocity = _select(applies, velocity * momentum - change, velocity)
    if rule.nesterov:
        moved = weight + (velocity * momentum - change)
    else:
        moved = weight + velocity
    return _select(applies, moved, before), velocity


def _averaged(
    rule: Rule,
    iterations: Tensor,
    weights: list[Tensor],
    averages: list[Tensor | None],
    counts: Tensor | None,
    has_started: Tensor | None,
) -> tuple[list[Tensor], list[Tensor | None]]:
    count = iterations
    if rule.accumulation_steps:
        count = iterations // rule.accumulation_steps
    goes_on = _both(tf.not_equal(count, 0), has_started)
    weights, averages = list(weights), list(averages)
    for i, average in enumerate(averages):
        if average is None:
            continue
        weight = weights[i]
        momentum = tf.cast(goes_on, weight.dtype) * rule.ema_momentum
        new = momentum * average + (1 - momentum) * weight
        averages[i] = average = _select(counts, new, average)
        if rule.ema_overwrite_frequency:
            is_due = tf.equal((count + 1) % rule.ema_overwrite_frequency, 0)
            overwrite = _both(is_due, counts)
            weights[i] = tf.where(overwrite, average, weight)
    return weights, averages


def _overwritten(
    weight: Tensor, gradient: Tensor, accumulator: Tensor | None, is_update: Any
) -> tuple[Tensor, Tensor | None]:
    gradient = tf.cast(gradient, weight.dtype)
    if is_update is None or accumulator is None:
        return gradient, accumulator
    largest = tf.maximum(gradient, accumulator)
    return (
        tf.where(is_update, largest, weight),
        tf.where(is_update, tf.zeros_like(largest), largest),
    )


def entrywise(gradient: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function that leaves zero alone, of each entry; also of what is sparse."""
    if not isinstance(gradient, tf.IndexedSlices):
        return function(gradient)
    values = function(gradient.values)
    return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)


def _values(gradient: Tensor) -> Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _both(one: Tensor | None, other: Tensor | None) -> Any:
    # None stands for what is always so.
    if one is None or other is None:
        return other if one is None else one
    return tf.logical_and(one, other)


def _select(condition: Any, new: Any, old: Any) -> Any:
    if condition is None or new is None or new is old:
        return new
    return tf.where(condition, new, old)
