"""Arguments that may be assigned on a live optimizer: checked, then taken up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Setting:
    """An attribute whose values are checked, whoever assigns them and when.

    Args:
        check: raises TypeError or ValueError for a value that cannot be. The method
            `check_settings` of the owner does so for values that cannot be together.
    """

    def __init__(self, check: Callable[[Any], None]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        self._check(value)
        before = vars(instance).get(self._name, value)
        setattr(instance, self._name, value)
        try:
            instance.check_settings()
        except ValueError:
            setattr(instance, self._name, before)
            raise
