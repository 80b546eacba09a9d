"""Arguments that may be assigned on a live optimizer: checked, then taken up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

# What is fixed in a compiled loop.
_CONSTANTS = (
    "examples_per_update",
    "order",
    "seed",
    "nonfinite",
    "jit_compile",
    "momentum",
    "nesterov",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


class Setting:
    """An attribute whose values are checked, whoever assigns them and when.

    Args:
        check: gives the value to keep; raises TypeError or ValueError for one that
            cannot be. The method `check_settings` of the owner does so for values that
            cannot be together.
    """

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        value = self._check(value)
        before = vars(instance).get(self._name, value)
        setattr(instance, self._name, value)
        try:
            instance.check_settings()
        except (ValueError, NotImplementedError):
            setattr(instance, self._name, before)
            raise


def constants(optimizer: Any, learning_rate: Any) -> tuple[Any, ...]:
    """What a loop is compiled for; a learning rate in a variable is read per batch."""
    is_read = isinstance(learning_rate, keras.Variable)
    schedule = None if is_read else learning_rate
    return (schedule, *(getattr(optimizer, name) for name in _CONSTANTS))
