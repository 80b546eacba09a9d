"""The rule of an optimizer: its parts in order, and the numbers they compute with.

The algebra and its order are those of `keras.optimizers.SGD` (Keras 3.15), so that a
run agrees with Keras at `batch_size=1`. Under a `keras.optimizers.LossScaleOptimizer`
an update scales its loss and tells the next scale, as Keras does.

Numbers of all parts stand in one vector of float64. They are computed on the host, so
that they are rounded once, as Python's own constants are, and put into a variable that
compiled steps read. So a callback may assign `momentum` for each batch: nothing is
traced or compiled anew. `compiled_for` has the settings that do ask for a new trace.
"""

from __future__ import annotations

import numbers as python_numbers
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import keras
import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer, PerObject, Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient
from keras_sgd_plus._rule.part import (
    Condition,
    Number,
    Part,
    Slot,
    State,
    Update,
    both,
    select,
)
from keras_sgd_plus._rule.parts import (
    Accumulate,
    Average,
    CapStep,
    Clip,
    Constrain,
    Decay,
    Descent,
    Overwrite,
    Unscale,
)

P = TypeVar("P", bound=Part)

# In the order in which they run. After the gradient parts, gradients of weights whose
# updates wait go to `_lazy`. The weight parts update all other weights.
GRADIENT_PARTS: tuple[type[Part], ...] = (
    Overwrite,
    Unscale,
    Accumulate,
    Clip,
    CapStep,
)
WEIGHT_PARTS: tuple[type[Part], ...] = (Decay, Descent, Average, Constrain)


class Updated(NamedTuple):
    """The result of a rule for one update."""

    state: State
    waiting: dict[int, Gradient]  # of the `apart` weights, for the caller to apply
    applies: Condition  # whether weights move in this update
    learning_rates: Sequence[Tensor]  # () float, per weight
    capped: Condition  # whether those were lowered to a cap; None: there is none


@dataclass(frozen=True)
class Rule:
    """A chain of parts, as an optimizer is set now.

    Attributes:
        gradient_parts: in order.
        weight_parts: in order, after those.
    """

    gradient_parts: tuple[Part, ...]
    weight_parts: tuple[Part, ...]

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Rule:
        """The rule of an SGDPlus.

        Args:
            optimizer: the SGDPlus.
            weights: the variables that it was or is being built with.
        """
        chains = [
            [kind.of(optimizer, weights) for kind in kinds]
            for kinds in (GRADIENT_PARTS, WEIGHT_PARTS)
        ]
        return cls(*(tuple(p for p in chain if p is not None) for chain in chains))

    def find(self, kind: type[P]) -> P | None:
        """The part of a kind, or None where the rule has none."""
        parts = (*self.gradient_parts, *self.weight_parts)
        return next((part for part in parts if isinstance(part, kind)), None)

    def needs_all_of(self, index: int) -> str | None:
        """Why each update has to see all of a weight; None where rows can wait."""
        reasons = (
            part.needs_all_of(index)
            for part in (*self.weight_parts[::-1], *self.gradient_parts)
        )
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def has_momentum(self) -> bool:
        """Whether weights move on without a gradient."""
        descent = self.find(Descent)
        return descent is not None and descent.has_momentum

    @property
    def nesterov(self) -> bool:
        """Whether the step is Nesterov's."""
        descent = self.find(Descent)
        return descent is not None and descent.nesterov

    def decays(self, index: int) -> bool:
        """Whether weight decay applies to a weight."""
        decay = self.find(Decay)
        return decay is not None and index in decay.indices

    @property
    def keeps_factors(self) -> bool:
        """Whether the product of two vectors as a gradient stays such a product."""
        parts = (*self.gradient_parts, *self.weight_parts)
        return all(part.keeps_factors for part in parts)

    @property
    def varies_rate(self) -> bool:
        """Whether the rule may change the learning rate from update to update."""
        parts = (*self.gradient_parts, *self.weight_parts)
        return any(part.varies_rate for part in parts)

    def __call__(self, update: Update, apart: Collection[int] = ()) -> Updated:
        """Makes one update with all parts, in their order, and counts it.

        Args:
            update: as it begins.
            apart: indices of weights that somebody else updates. Their entries of the
                state stay as they are.
        """
        iterations = update.state.iterations
        update = replace(update, applies=update.may_change)
        for part in self.gradient_parts:
            if update.gradients:
                update = part(update)
        waiting = {i: g for i, g in update.gradients.items() if i in apart}
        if update.gradients:
            others = {i: g for i, g in update.gradients.items() if i not in apart}
            update = replace(update, gradients=others)
            for part in self.weight_parts:
                update = part(update)
        state = update.state._replace(iterations=iterations + 1)
        rates = update.learning_rates
        return Updated(state, waiting, update.applies, rates, update.capped)


def all_numbers() -> tuple[Number, ...]:
    """The numbers that parts of a rule take as tensors, in the order of the vector."""
    kinds = (*GRADIENT_PARTS, *WEIGHT_PARTS)
    return tuple(number for kind in kinds for number in kind.numbers)


def all_slots(optimizer: Optimizer) -> list[Slot]:
    """The state that the rule of an SGDPlus keeps per weight."""
    kinds = (*GRADIENT_PARTS, *WEIGHT_PARTS)
    return [slot for kind in kinds for slot in kind.slots(optimizer)]


def make_slots(optimizer: Any, weights: Sequence[Variable]) -> None:
    """Makes the state that Keras's `build` has not made, after Keras's own.

    Args:
        optimizer: an SGDPlus that is being built.
        weights: its variables.
    """
    for slot in all_slots(optimizer):
        if not slot.is_made_by_keras:
            made = [
                optimizer.add_variable_from_reference(v, name=slot.name)
                for v in weights
            ]
            setattr(optimizer, slot.attribute, made)


_OF_THE_LOOP = ("examples_per_update", "order", "seed", "nonfinite", "jit_compile")


def compiled_for(optimizer: Optimizer, with_numbers: bool) -> tuple[object, ...]:
    """The values of an SGDPlus that a compiled loop takes as constants.

    Where one of them differs later, the loop has to be traced anew. A learning rate in
    a variable is read per batch, a schedule is one of the constants.

    Args:
        optimizer: the SGDPlus.
        with_numbers: whether numbers of the rule are constants, too. Else only whether
            they are above zero counts.
    """
    of_parts = (n for kind in (*GRADIENT_PARTS, *WEIGHT_PARTS) for n in kind.settings)
    values = [getattr(optimizer, name) for name in (*_OF_THE_LOOP, *of_parts)]
    numbers = [getattr(optimizer, number.setting) for number in all_numbers()]
    if not with_numbers:
        numbers = [v if v is None or _is_held(v) else _plain(v) > 0 for v in numbers]
    schedule = keras_optimizer.schedule(optimizer)
    return (schedule, makes_small_batches(optimizer), *values, *numbers)


# Whether the batches that `fit` makes of arrays are small, per optimizer.
_small: PerObject[list[bool]] = PerObject(lambda: [False])
SMALL_BATCH = 32  # examples


def expect_batches(optimizer: Optimizer | None, batch_size: int | None) -> None:
    """Says how many examples the next batches have; None where that is not known.

    A loop that is traced for small batches has smaller blocks. It takes others as well.
    Does nothing without an optimizer.
    """
    if optimizer is None:
        return
    is_small = isinstance(batch_size, int) and batch_size <= SMALL_BATCH
    _small[optimizer][0] = is_small


def makes_small_batches(optimizer: Optimizer) -> bool:
    """Whether the next batches are expected to have 32 examples or fewer."""
    return _small[optimizer][0]


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


# (numbers,) float64. Keras saves the variables of an optimizer, and a plain SGDPlus has
# those of a plain SGD.
_vectors: PerObject[Any] = PerObject(
    lambda: private_tensorflow.variable((len(all_numbers()),), tf.float64)
)


def numbers_of(optimizer: Optimizer, are_constants: bool = False) -> Tensor:
    """The numbers that the rule of an optimizer computes with, (numbers,) float64.

    Read outside the compiled loop, since a replica may compile for another device.

    Args:
        optimizer: the SGDPlus.
        are_constants: whether a loop is traced that takes them as constants.
    """
    if are_constants:
        found = tf.constant(_on_host(optimizer), tf.float64)
    else:
        is_new, vector = optimizer not in _vectors, _vectors[optimizer]
        if is_new:
            refresh_numbers(optimizer)
        found = vector.read_value()
    held = [getattr(optimizer, number.setting) for number in all_numbers()]
    if not any(map(_is_held, held)):
        return found
    parts = [
        tf.cast(tf.convert_to_tensor(v), tf.float64) if _is_held(v) else found[i]
        for i, v in enumerate(held)
    ]
    return tf.stack(parts)


def refresh_numbers(optimizer: Optimizer) -> None:
    """Lets steps that are compiled already see settings that were just assigned."""
    if optimizer in _vectors:
        with tf.init_scope():
            _vectors[optimizer].assign(_on_host(optimizer))


def by_name(vector: Tensor) -> dict[str, Tensor]:
    """The numbers of a vector, (numbers,) float64, by their names."""
    names = [number.name for number in all_numbers()]
    return dict(zip(names, tf.unstack(vector, len(names)), strict=True))


def _on_host(optimizer: Optimizer) -> list[float]:
    # Zero for a setting that is None, or in a variable, which the loop reads itself.
    pairs = [(n, _plain(getattr(optimizer, n.setting))) for n in all_numbers()]
    return [n.of(value) if value > 0 else value for n, value in pairs]


def _plain(value: object) -> float:
    return float(value) if isinstance(value, python_numbers.Real) else 0.0


def _is_held(value: object) -> bool:
    return isinstance(value, (tf.Variable, keras.Variable))
