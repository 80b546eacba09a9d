"""Where the parts of a rule are put together, and run.

The algebra and its order are those of `keras.optimizers.SGD` (Keras 3.15), so that a
run agrees with Keras at `batch_size=1`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from keras_sgd_plus._private.types import Optimizer, Tensor
from keras_sgd_plus._rule.accumulate import Accumulate, Overwrite, Unscale
from keras_sgd_plus._rule.average import Average, Constrain
from keras_sgd_plus._rule.capped_step import CapStep
from keras_sgd_plus._rule.clip import Clip
from keras_sgd_plus._rule.descent import Decay, Descent
from keras_sgd_plus._rule.gradient import Gradient
from keras_sgd_plus._rule.numbers import Number
from keras_sgd_plus._rule.part import Condition, Part, Slot, State, Update

P = TypeVar("P", bound=Part)

# In the order in which they run. After the gradient parts, gradients of weights whose
# updates wait go to `_pending`. The weight parts update all other weights.
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
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Rule:
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


def settings() -> tuple[str, ...]:
    """Attributes of SGDPlus that a rule is made from, each once."""
    kinds = (*GRADIENT_PARTS, *WEIGHT_PARTS)
    return tuple(dict.fromkeys(name for kind in kinds for name in kind.settings))


def all_numbers() -> tuple[Number, ...]:
    """The numbers that parts of a rule take as tensors, in the order of the vector."""
    kinds = (*GRADIENT_PARTS, *WEIGHT_PARTS)
    return tuple(number for kind in kinds for number in kind.numbers)


def slots(optimizer: Optimizer) -> list[Slot]:
    """The state that the rule of an SGDPlus keeps per weight."""
    kinds = (*GRADIENT_PARTS, *WEIGHT_PARTS)
    return [slot for kind in kinds for slot in kind.slots(optimizer)]


def make_slots(optimizer: Optimizer, weights: Sequence[Any]) -> None:
    """Makes the state that Keras's `build` has not made, after Keras's own.

    Args:
        optimizer: an SGDPlus that is being built.
        weights: its variables.
    """
    for slot in slots(optimizer):
        if not slot.is_made_by_keras:
            made = [
                optimizer.add_variable_from_reference(v, name=slot.name)
                for v in weights
            ]
            setattr(optimizer, slot.attribute, made)
