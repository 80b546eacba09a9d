"""The variables in which an optimizer keeps weights and the state of its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer, Variable
from keras_sgd_plus._rule import Slot, State
from keras_sgd_plus._rule import slots as slots_of


@dataclass(frozen=True)
class RuleVariables:
    """The variables of an update rule, found once per trace, outside any scope.

    Attributes:
        weights: that the optimizer was built with.
        slots: by name, a variable or None per weight.
        iterations: the raw counter of updates.
    """

    weights: list[Any]
    slots: Mapping[str, Sequence[Any]]
    iterations: Variable

    @classmethod
    def of(cls, optimizer: Optimizer, weights: list[Any]) -> RuleVariables:
        """The variables of an SGDPlus that is built with `weights`.

        Raises:
            ValueError: a setting that needs variables was made after that.
        """
        slots = {
            s.name: _variables(optimizer, s, len(weights)) for s in slots_of(optimizer)
        }
        return cls(weights, slots, keras_optimizer.raw_iterations(optimizer))

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Per weight, that weight and its slots; None where there is no slot."""
        return list(zip(self.weights, *self.slots.values(), strict=True))

    def read(self, scope: Scope) -> State:
        """The values that the rule works on."""
        slots = {name: scope.values(column) for name, column in self.slots.items()}
        iterations = scope.in_loop_layout(self.iterations)
        return State(scope.values(self.weights), slots, iterations)

    def write(self, scope: Scope, state: State) -> None:
        """Puts new values in the scope, if they are new."""
        pairs = [(self.iterations, state.iterations)]
        columns = [(self.weights, state.weights)]
        columns += [(self.slots[name], state.slots[name]) for name in self.slots]
        for variables, values in columns:
            pairs += zip(variables, values, strict=True)
        for variable, value in pairs:
            if variable is not None and value is not scope.in_loop_layout(variable):
                scope.put(variable, value)


def _variables(optimizer: Optimizer, slot: Slot, num_weights: int) -> Sequence[Any]:
    # They are made in `build`, and never after.
    found = list(getattr(optimizer, slot.attribute, ()))
    if len(found) != num_weights:
        if slot.is_made_by_keras:
            keras_optimizer.need_slot(slot.attribute)
        value = getattr(optimizer, slot.setting, None)
        raise ValueError(
            f"`{slot.setting}` must be set before the optimizer is built, for it needs "
            f"variables. Received: {slot.setting}={value!r}, set later. Make a new "
            f"SGDPlus(..., {slot.setting}={value!r}) and compile the model with it."
        )
    return found
