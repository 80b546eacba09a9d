"""Parts of a rule, and the update that they work on.

    update = part(update)            # for each part of a rule, in order

Nothing here reads or writes a variable. To add a part, define a class like those in
`parts.py`, and put it into `GRADIENT_PARTS` or `WEIGHT_PARTS` of `rule.py`: its state
is then made with the optimizer, carried by the loop, saved and restored. Each new value
goes through `select(update.may_change, new, old)`, or a group that is skipped would
change it. An argument of its own goes into the table of `_optimizer/settings.py`, into
the signature of `SGDPlus` and into `types.Optimizer`. Parts act in the loop alone;
gradients that are applied by hand get the rule of `keras.optimizers.SGD`.

A part names the numbers that it computes with (`Part.numbers`). The loop takes them as
tensors, so a new one compiles nothing: it is compiled for whether such a number is
above zero, not for its value.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from keras_sgd_plus._private.types import Optimizer, Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient


class Number(NamedTuple):
    """A number that a part of a rule computes with.

    Attributes:
        name: the key under which the part finds it.
        setting: the attribute of SGDPlus that it is made from.
        of: computes it from the value of that attribute, which is above zero.
    """

    name: str
    setting: str
    of: Callable[[float], float] = float


Numbers = Mapping[str, Tensor]  # by name, () float64


def in_float32(value: float) -> float:
    """Rounds as TensorFlow rounds Python's floats: `tf.cast(0.9, dtype)`.

    Keras casts momentum and weight decay so to a weight's type, float64 too. It is done
    on the host, since TensorFlow 2.17's XLA drops a cast to float32 and back.
    """
    return float(np.float32(value))


Condition = Tensor | None  # () bool; None is a condition that always holds


@dataclass(frozen=True)
class Slot:
    """State that a part keeps per weight: a variable of the weight's shape, of zeros.

    Attributes:
        name: the key in `State.slots`.
        attribute: of the optimizer: a list with a variable, or None, per weight.
        setting: the argument of SGDPlus that asks for it.
        is_made_by_keras: whether `keras.optimizers.SGD.build` makes the variables. Else
            SGDPlus makes them after Keras's own.
    """

    name: str
    attribute: str
    setting: str
    is_made_by_keras: bool = False


class State(NamedTuple):
    """Weights and optimizer state; each list has an entry per built variable.

    Matrices that the loop carries transposed are transposed here, with their slots.
    """

    weights: list[Tensor]
    slots: dict[str, list[Any]]  # tensors, or None; by the name of the slot
    iterations: Tensor  # () int64, raw: not divided by gradient_accumulation_steps


@dataclass(frozen=True)
class Update:
    """One update in the making.

    Attributes:
        state: so far.
        gradients: by the weight's index; a weight without one keeps its value.
        learning_rates: () float, per weight.
        may_change: whether anything but the counter may change. Each part makes that
            choice where it computes a value, since the next part computes with it: a
            choice at the end would keep old and new values of all. Where a gradient is
            scattered it must be zero instead; a choice would copy the table.
        applies: whether weights move in this update; the rule finds that.
        numbers: that the parts of the rule have named.
        loss: () float, of the update, without loss scaling.
        unclipped: the gradients before they were clipped; None: they were not.
        capped: whether the learning rates were lowered to a cap.
    """

    state: State
    gradients: dict[int, Gradient]
    learning_rates: Sequence[Tensor]
    may_change: Condition = None
    applies: Condition = None
    numbers: Numbers = field(default_factory=dict)
    loss: Any = None
    unclipped: dict[int, Gradient] | None = None
    capped: Condition = None


class Part(abc.ABC):
    """One part of a rule: a pure function from an update to the next.

    A part must treat each entry of a weight alike, or the whole tensor alike: it may
    see a matrix transposed, together with its slots.

    Attributes:
        settings: attributes of SGDPlus that the part is made from. A changed one asks
            for a new trace.
        numbers: that the part finds in `Update.numbers`. A changed one does not; only
            one that is switched on or off.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[Number, ...]] = ()

    @classmethod
    def slots(cls, optimizer: Optimizer) -> tuple[Slot, ...]:
        """The state that the part keeps per weight, as the optimizer is set now."""
        return ()

    @classmethod
    @abc.abstractmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Variable]) -> Part | None:
        """The part for an optimizer as it is set now; None where it does nothing.

        Args:
            optimizer: the SGDPlus.
            weights: the variables that it was or is being built with.
        """

    @abc.abstractmethod
    def __call__(self, update: Update) -> Update:
        """The update after this part."""

    @property
    def keeps_factors(self) -> bool:
        """Whether the product of two vectors as a gradient stays such a product."""
        return True

    @property
    def varies_rate(self) -> bool:
        """Whether the part may change the learning rate from update to update."""
        return False

    def needs_all_of(self, index: int) -> str | None:
        """Why each update has to see all of a weight, in words for the user.

        None where rows of a table without a gradient can be updated later.
        """
        return f"{type(self).__name__} looks at all of it"


def window_ends(iterations: Any, steps: int | None) -> Any:
    """Whether this update ends a window of gradient accumulation; None: each does."""
    return tf.equal((iterations + 1) % steps, 0) if steps else None


def both(one: Condition, other: Condition) -> Any:
    """Whether both conditions hold."""
    if one is None or other is None:
        return other if one is None else one
    return tf.logical_and(one, other)


def select(condition: Condition, new: Any, old: Any) -> Any:
    """The new value where the condition holds, else the old one."""
    if condition is None or new is None or new is old:
        return new
    return tf.where(condition, new, old)
