"""Parts for gradients before they are clipped: overwrite, unscale, accumulate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule.gradient import DenseGradient, Gradient
from keras_sgd_plus._rule.part import (
    Condition,
    Part,
    Slot,
    Tensor,
    Update,
    both,
    select,
    window_ends,
)

ACCUMULATORS = Slot(
    "accumulators",
    keras_optimizer.ACCUMULATORS,
    "gradient_accumulation_steps",
    is_made_by_keras=True,
)


@dataclass(frozen=True)
class Overwrite(Part):
    """Sets variables whose "gradient" is their next value (scales of float8 layers).

    In a window of gradient accumulation the largest value wins.
    """

    indices: frozenset[int]
    steps: int | None

    settings = ("gradient_accumulation_steps",)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Overwrite | None:
        found = frozenset(
            i
            for i, variable in enumerate(weights)
            if getattr(variable, "overwrite_with_gradient", False)
        )
        steps = optimizer.gradient_accumulation_steps
        return cls(found, steps) if found else None

    def __call__(self, update: Update) -> Update:
        ends = window_ends(update.state.iterations, self.steps)
        weights = list(update.state.weights)
        accumulators = list(update.state.slots.get(ACCUMULATORS.name, ()))
        left: dict[int, Gradient] = {}
        for i, gradient in update.gradients.items():
            if i not in self.indices:
                left[i] = gradient
                continue
            value = tf.cast(gradient.dense(), weights[i].dtype)
            before = accumulators[i] if accumulators else None
            if ends is not None and before is not None:
                value, after = _largest(weights[i], value, before, ends)
                accumulators[i] = select(update.may_change, after, before)
            weights[i] = select(update.may_change, value, weights[i])
        slots = update.state.slots
        if accumulators:
            slots = {**slots, ACCUMULATORS.name: accumulators}
        state = update.state._replace(weights=weights, slots=slots)
        return replace(update, state=state, gradients=left)

    def needs_all_of(self, index: int) -> str | None:
        return "its gradient is its next value" if index in self.indices else None


def _largest(
    weight: Tensor, value: Tensor, accumulator: Tensor, ends: Condition
) -> tuple[Tensor, Tensor]:
    # The weight and its accumulator after one more value.
    largest = tf.maximum(value, accumulator)
    return (
        tf.where(ends, largest, weight),
        tf.where(ends, tf.zeros_like(largest), largest),
    )


@dataclass(frozen=True)
class Unscale(Part):
    """Divides gradients by `loss_scale_factor`, which the loss was multiplied by."""

    factor: float

    settings = ("loss_scale_factor",)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Unscale | None:
        del weights
        factor = optimizer.loss_scale_factor
        return None if factor is None else cls(factor)

    def __call__(self, update: Update) -> Update:
        unscaled = {
            i: g.scaled(lambda v: v / self.factor) for i, g in update.gradients.items()
        }
        return replace(update, gradients=unscaled)

    def needs_all_of(self, index: int) -> str | None:
        del index
        return None


@dataclass(frozen=True)
class Accumulate(Part):
    """Averages the gradients of `gradient_accumulation_steps` updates into one step."""

    steps: int

    settings = ("gradient_accumulation_steps",)

    @classmethod
    def slots(cls, optimizer: Optimizer) -> tuple[Slot, ...]:
        return (ACCUMULATORS,) if optimizer.gradient_accumulation_steps else ()

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Accumulate | None:
        del weights
        steps = optimizer.gradient_accumulation_steps
        return cls(steps) if steps else None

    def __call__(self, update: Update) -> Update:
        ends = window_ends(update.state.iterations, self.steps)
        before = update.state.slots[ACCUMULATORS.name]
        sums, means = list(before), {}
        for i, gradient in update.gradients.items():
            sums[i] = total = gradient.dense() + sums[i]
            means[i] = DenseGradient(total / self.steps)
        emptied = [
            None if s is None else tf.where(ends, tf.zeros_like(s), s) for s in sums
        ]
        kept = [
            select(update.may_change, new, old)
            for new, old in zip(emptied, before, strict=True)
        ]
        slots = {**update.state.slots, ACCUMULATORS.name: kept}
        return replace(
            update,
            state=update.state._replace(slots=slots),
            gradients=means,
            applies=both(ends, update.may_change),
        )

    def needs_all_of(self, index: int) -> str | None:
        del index
        return "gradient_accumulation_steps adds up gradients of all of it"
