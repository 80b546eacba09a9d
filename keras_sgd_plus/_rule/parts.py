"""The parts of SGD's rule, in the order in which they run.

Before a gradient is clipped: `Overwrite`, `Unscale`, `Accumulate`. Then `Clip`, and
`CapStep`, which looks at the loss of its own update. On the weights: `Decay`,
`Descent` with momentum, `Average`, `Constrain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer, Tensor, Variable
from keras_sgd_plus._rule.gradient import DenseGradient, Gradient, RowsGradient, inner
from keras_sgd_plus._rule.part import (
    Condition,
    Number,
    Numbers,
    Part,
    Slot,
    Update,
    both,
    in_float32,
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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Overwrite | None:
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
    weight: Tensor, value: Tensor, accumulator: Tensor, ends: Tensor
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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Unscale | None:
        factor = optimizer.loss_scale_factor
        return None if factor is None else cls(factor)

    def __call__(self, update: Update) -> Update:
        unscaled = {
            i: g.scaled(lambda v: v / self.factor) for i, g in update.gradients.items()
        }
        return replace(update, gradients=unscaled)

    def needs_all_of(self, index: int) -> str | None:
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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Accumulate | None:
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
        return "gradient_accumulation_steps adds up gradients of all of it"


ops: Any = keras.ops  # its annotations name tensors of every backend


@dataclass(frozen=True)
class Clip(Part):
    """Clips each gradient's norm, its entries, or the norm of all gradients together.

    Zero means off, as in Keras.
    """

    kind: str  # the name of the argument that is set

    numbers = (
        Number("clipnorm", "clipnorm"),
        Number("clipvalue", "clipvalue"),
        Number("global_clipnorm", "global_clipnorm"),
        Number("1 / global_clipnorm", "global_clipnorm", lambda limit: 1.0 / limit),
    )

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Clip | None:
        for kind in ("clipnorm", "global_clipnorm", "clipvalue"):  # as Keras prefers
            limit = getattr(optimizer, kind)
            if limit and limit > 0:
                return cls(kind)
        return None

    def __call__(self, update: Update) -> Update:
        gradients, limit = update.gradients, update.numbers[self.kind]
        if self.kind == "clipnorm":
            clipped = {i: g.clipped_by_norm(limit) for i, g in gradients.items()}
        elif self.kind == "global_clipnorm":
            clipped = _together(gradients, update.numbers)
        else:
            clipped = {i: g.entrywise(_within(limit)) for i, g in gradients.items()}
        return replace(update, gradients=clipped, unclipped=gradients)

    @property
    def keeps_factors(self) -> bool:
        return self.kind != "clipvalue"  # which looks at each entry

    def needs_all_of(self, index: int) -> str | None:
        return None


def _within(limit: Tensor) -> Callable[[Tensor], Tensor]:
    def clip(value: Tensor) -> Tensor:
        high = tf.cast(limit, value.dtype)
        return ops.clip(value, -high, high)

    return clip


def _together(gradients: dict[int, Gradient], numbers: Numbers) -> dict[int, Gradient]:
    squares = [g.squared_norm() for g in gradients.values()]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    limit, inverse = (
        tf.cast(numbers[name], norm.dtype)
        for name in ("global_clipnorm", "1 / global_clipnorm")
    )
    # The added zero turns NaN where the norm is not finite, as in Keras.
    scale = limit * ops.minimum(1.0 / norm, inverse) + (norm - norm)
    return {i: g.scaled(lambda v: v * scale) for i, g in gradients.items()}


@dataclass(frozen=True)
class CapStep(Part):
    """Lets an update remove, to first order, at most a fraction of its own loss.

    cap = max_loss_fraction * (1 - momentum) * max(f, 0) / <g, g'>
    learning_rate = cap where cap < learning_rate

    f is the loss of the update, g its gradient, g' that after clipping. One kick of
    size s moves the weights by s / (1 - momentum) in the end, hence that factor.

    Asi and Duchi, 2019 (https://arxiv.org/abs/1903.08619); Loizou et al., 2021
    (https://arxiv.org/abs/2002.10542); with momentum, Oikonomou and Loizou, 2024
    (https://arxiv.org/abs/2406.04142).
    """

    settings = ("gradient_accumulation_steps",)
    numbers = (Number("max_loss_fraction", "max_loss_fraction"),)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> CapStep | None:
        if optimizer.max_loss_fraction is None:
            return None
        refuse_with_fraction(
            optimizer
        )  # settings of Keras are not checked when they are assigned
        return cls()

    def __call__(self, update: Update) -> Update:
        after = update.gradients
        before = after if update.unclipped is None else update.unclipped
        products = [inner(before[i], g) for i, g in after.items()]
        is_wide = any(p.dtype == tf.float64 for p in products)
        dtype = tf.float64 if is_wide else tf.float32
        product = tf.add_n([tf.cast(p, dtype) for p in products])
        numbers: Any = update.numbers
        share = numbers["max_loss_fraction"] * (1 - numbers["momentum"])
        # Where the product overflows, an infinite loss must not give NaN.
        loss = tf.clip_by_value(tf.cast(update.loss, dtype), 0, dtype.max)
        cap = tf.cast(share, dtype) * loss / product
        rates = list(update.learning_rates)
        for i in after:
            # NaN (no loss and no gradient, say) is not below the rate. Each weight
            # keeps its own rate, which may wait for the products that read the weight.
            rate = tf.cast(rates[i], dtype)
            rates[i] = tf.where(cap < rate, cap, rate)
        first = tf.cast(update.learning_rates[next(iter(after))], dtype)
        return replace(update, learning_rates=rates, capped=cap < first)

    @property
    def varies_rate(self) -> bool:
        return True

    def needs_all_of(self, index: int) -> str | None:
        return None  # the product is that of the gradient's rows


def refuse_with_fraction(optimizer: Optimizer) -> None:
    """Raises NotImplementedError where updates do not have a loss of their own.

    Args:
        optimizer: an SGDPlus with a `max_loss_fraction`.
    """
    received = fix = None
    if optimizer.gradient_accumulation_steps:
        steps = optimizer.gradient_accumulation_steps
        received = f"gradient_accumulation_steps={steps}"
        fix = "Use examples_per_update=k to average k of them."
    elif optimizer.examples_per_update is None:
        received = "examples_per_update=None"
        fix = "Use 1 or more, whose loop sees each loss."
    if received is not None:
        raise NotImplementedError(
            "With `max_loss_fraction` each update must be made from the loss and the "
            f"gradient of the same examples. Received: {received}, with "
            f"max_loss_fraction={optimizer.max_loss_fraction!r}. {fix}"
        )


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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Decay | None:
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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Descent:
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
        velocity: Any,
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


def exact_decay(numbers: Numbers, rate: Tensor) -> Tensor:
    """() float64: the part of a weight that one update takes away.

    Args:
        numbers: of the rule.
        rate: () learning rate, in the type of the weight.
    """
    return tf.cast(rate, tf.float64) * numbers["weight_decay"]


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
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Average | None:
        if not optimizer.use_ema:
            return None
        return cls(*(getattr(optimizer, name) for name in cls.settings[1:]))

    def __call__(self, update: Update) -> Update:
        count: Any = update.state.iterations
        if self.accumulation_steps:
            count = count // self.accumulation_steps
        weights = list(update.state.weights)
        averages = list(update.state.slots[AVERAGES.name])
        goes_on = tf.not_equal(count, 0)
        if update.may_change is not None:  # what was skipped has been counted
            started = [tf.reduce_any(a != 0) for a in averages if a is not None]
            goes_on = tf.logical_and(goes_on, tf.reduce_any(tf.stack(started)))
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
        return "use_ema=True averages all of it"


@dataclass(frozen=True)
class Constrain(Part):
    """Applies the constraints of the model's variables."""

    constraints: tuple[Callable[[Tensor], Tensor] | None, ...]  # per weight

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Constrain | None:
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
