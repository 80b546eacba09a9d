"""Structures of arrays, and the lists of numbers that stand for arrays in them."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np

_SCALARS = (numbers.Number, str, bytes, np.generic)


def arrays_of(name: str, part: Any) -> Any:
    """The structure of a part of the data, with a NumPy array in each place.

    Args:
        name: of the part, for the message.
        part: arrays, tensors or lists of numbers, in dicts, lists and tuples; None
            entries stay.

    Raises:
        ValueError: a list of rows of several lengths.
    """

    def array_at(place: Any) -> Any:
        # None lets `traverse` look inside a structure, and keeps an entry that is None.
        is_array = _is_list_of_numbers(place) or not keras.tree.is_nested(place)
        return np.asarray(place) if is_array and place is not None else None

    try:
        return keras.tree.traverse(array_at, part)
    except ValueError:  # of NumPy
        raise ValueError(
            f"The rows of a list must have one shape. Received: {name} with rows of "
            "several. Pad the rows to one length, or pass several inputs as a list of "
            "arrays."
        ) from None


def _is_list_of_numbers(place: Any) -> bool:
    if not isinstance(place, (list, tuple)):
        return False
    return all(isinstance(v, _SCALARS) or _is_list_of_numbers(v) for v in place)
