"""Arguments that may be assigned on a live optimizer: checked, then taken up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Setting:
    """An attribute whose values are checked, whoever assigns them and when.

    Args:
        check: gives the value to keep; raises TypeError or ValueError for one that
            cannot be.
        check_together: is given the object with the new value; raises TypeError,
            ValueError or NotImplementedError where it contradicts other settings.
    """

    def __init__(
        self, check: Callable[[Any], Any], check_together: Callable[[Any], None]
    ) -> None:
        self._check, self._check_together = check, check_together

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        value = self._check(value)
        before = vars(instance).get(self._name, value)
        setattr(instance, self._name, value)
        try:
            self._check_together(instance)
        except (TypeError, ValueError, NotImplementedError):
            setattr(instance, self._name, before)
            raise


def checked_property(original: Any, check: Callable[[Any], None]) -> Any:
    """A property of Keras whose new values are checked first.

    Args:
        original: the property.
        check: raises TypeError or ValueError for a value that cannot be.
    """

    def assign(instance: Any, value: Any) -> None:
        check(value)
        original.fset(instance, value)

    return property(original.fget, assign, original.fdel, original.__doc__)
