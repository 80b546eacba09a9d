"""Parts for weights after the step: average and constrain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule.numbers import Number
from keras_sgd_plus._rule.part import Part, Slot, Tensor, Update, both, select

AVERAGES = Slot("averages", keras_optimizer.AVERAGES, "use_ema", is_made_by_keras=True)


@dataclass(frozen=True)
class Average(Part):
    """Keeps an exponential moving average of each weight (`use_ema`).

    a = ema_momentum * a + (1 - ema_momentum) * w;  the first average is the weight
    """

    overwrite_frequency: int | None
    accumulation_steps: int | None

    settings = (
        "use_ema",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
    )
    numbers = (Number("ema_momentum", "ema_momentum"),)

    @classmethod
    def slots(cls, optimizer: Optimizer) -> tuple[Slot, ...]:
        return (AVERAGES,) if optimizer.use_ema else ()

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Average | None:
        del weights
        if not optimizer.use_ema:
            return None
        return cls(*(getattr(optimizer, name) for name in cls.settings[1:]))

    def __call__(self, update: Update) -> Update:
        count = update.state.iterations
        if self.accumulation_steps:
            count = count // self.accumulation_steps
        goes_on = both(tf.not_equal(count, 0), update.has_started)
        weights = list(update.state.weights)
        averages = list(update.state.slots[AVERAGES.name])
        for i, average in enumerate(averages):
            if average is None:
                continue
            weight = weights[i]
            momentum = tf.cast(goes_on, weight.dtype) * tf.cast(
                update.numbers["ema_momentum"], weight.dtype
            )
            new = momentum * average + (1 - momentum) * weight
            averages[i] = average = select(update.may_change, new, average)
            if self.overwrite_frequency:
                is_due = tf.equal((count + 1) % self.overwrite_frequency, 0)
                weights[i] = tf.where(both(is_due, update.may_change), average, weight)
        slots = {**update.state.slots, AVERAGES.name: averages}
        state = update.state._replace(weights=weights, slots=slots)
        return replace(update, state=state)

    def needs_all_of(self, index: int) -> str | None:
        del index
        return "use_ema=True averages all of it"


@dataclass(frozen=True)
class Constrain(Part):
    """Applies the constraints of the model's variables."""

    constraints: tuple[Callable[[Tensor], Tensor] | None, ...]  # per weight

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Constrain | None:
        del optimizer
        found = tuple(v.constraint for v in weights)
        return cls(found) if any(c is not None for c in found) else None

    def __call__(self, update: Update) -> Update:
        weights = list(update.state.weights)
        for i in update.gradients:
            constraint = self.constraints[i]
            if constraint is not None:
                constrained = tf.cast(constraint(weights[i]), weights[i].dtype)
                weights[i] = select(update.may_change, constrained, weights[i])
        return replace(update, state=update.state._replace(weights=weights))

    def needs_all_of(self, index: int) -> str | None:
        return "a constraint looks at all of it" if self.constraints[index] else None
