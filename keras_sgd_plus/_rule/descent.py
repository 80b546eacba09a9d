"""Weight decay, and the step of gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule.gradient import Gradient, RowsGradient
from keras_sgd_plus._rule.numbers import Number, Numbers, in_float32
from keras_sgd_plus._rule.part import Condition, Part, Slot, Tensor, Update, select

VELOCITIES = Slot(
    "velocities", keras_optimizer.VELOCITIES, "momentum", is_made_by_keras=True
)
_ROUNDED_LITTLE = ("float32", "float64")


@dataclass(frozen=True)
class Decay(Part):
    """Decoupled weight decay: `w -= w * weight_decay * learning_rate`."""

    indices: frozenset[int]  # of the weights that are not excluded

    numbers = (Number("weight_decay", "weight_decay", in_float32),)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Decay | None:
        if optimizer.weight_decay is None:
            return None
        found = [keras_optimizer.decays(optimizer, v) for v in weights]
        return cls(frozenset(i for i, d in enumerate(found) if d))

    def __call__(self, update: Update) -> Update:
        weights = list(update.state.weights)
        amount = update.numbers["weight_decay"]
        for i in [i for i in update.gradients if i in self.indices]:
            weight = weights[i]
            rate = tf.cast(update.learning_rates[i], weight.dtype)
            decayed = weight - weight * tf.cast(amount, weight.dtype) * rate
            weights[i] = select(update.applies, decayed, weight)
        return replace(update, state=update.state._replace(weights=weights))

    def needs_all_of(self, index: int) -> str | None:
        del index
        return None  # rows that wait decay later, in closed form


@dataclass(frozen=True)
class Descent(Part):
    """The step of gradient descent, with momentum and Nesterov's form of it.

    v = momentum * v - learning_rate * g;  w = w + v
    (nesterov: w = w + momentum * v - learning_rate * g)
    """

    has_momentum: bool
    nesterov: bool
    dtypes: tuple[str, ...]  # of the weights

    settings = ("nesterov",)
    numbers = (Number("momentum", "momentum", in_float32),)

    @classmethod
    def slots(cls, optimizer: Optimizer) -> tuple[Slot, ...]:
        return (VELOCITIES,) if optimizer.momentum else ()

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Descent:
        dtypes = tuple(v.dtype for v in weights)
        return cls(bool(optimizer.momentum), optimizer.nesterov, dtypes)

    def __call__(self, update: Update) -> Update:
        weights = list(update.state.weights)
        none: list[Any] = [None] * len(weights)
        velocities = list(update.state.slots.get(VELOCITIES.name, none))
        momentum = update.numbers["momentum"] if self.has_momentum else None
        for i, gradient in update.gradients.items():
            rate = tf.cast(update.learning_rates[i], weights[i].dtype)
            weights[i], velocities[i] = self._step(
                weights[i], velocities[i], gradient, rate, momentum, update.applies
            )
        slots = update.state.slots
        if VELOCITIES.name in slots:
            slots = {**slots, VELOCITIES.name: velocities}
        state = update.state._replace(weights=weights, slots=slots)
        return replace(update, state=state)

    def needs_all_of(self, index: int) -> str | None:
        dtype = self.dtypes[index]
        if dtype not in _ROUNDED_LITTLE:
            return f"its type, {dtype}, is rounded at each update"
        return None

    def _step(
        self,
        weight: Tensor,
        velocity: Tensor | None,
        gradient: Gradient,
        rate: Tensor,
        momentum: Tensor | None,
        applies: Condition,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = weight.dtype
        if velocity is None and isinstance(gradient, RowsGradient):
            rows = tf.expand_dims(gradient.indices, -1)
            change = tf.cast(gradient.values, dtype) * rate
            return tf.tensor_scatter_nd_sub(weight, rows, change), None
        if isinstance(gradient, RowsGradient):
            change = gradient.entrywise(lambda v: tf.cast(v, dtype) * rate).dense()
        else:
            change = tf.cast(gradient.dense(), dtype) * rate
        if velocity is None or momentum is None:
            return select(applies, weight - change, weight), None
        keep: Any = tf.cast(momentum, dtype)
        velocity = select(applies, velocity * keep - change, velocity)
        if self.nesterov:
            moved = weight + (velocity * keep - change)
        else:
            moved = weight + velocity
        return select(applies, moved, weight), velocity


def exact_decay(numbers: Numbers, rate: Tensor) -> Any:
    """() float64: the part of a weight that one update takes away.

    Args:
        numbers: of the rule.
        rate: () learning rate, in the type of the weight.
    """
    return tf.cast(rate, tf.float64) * numbers["weight_decay"]
