"""Numbers of a rule that a compiled loop takes as tensors: a new one compiles nothing.

Parts of a rule name them (`Part.numbers`). A loop is compiled for whether such a number
is above zero, not for its value. All are computed on the host and handed over in one
vector of float64, so that they are rounded once, as Python's own constants are.
"""

from __future__ import annotations

import numbers as python_numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private.types import Optimizer, Tensor


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


def on_host(optimizer: Optimizer, numbers: Sequence[Number]) -> list[float]:
    """The values of now; zero for a setting that is None or held by a variable."""
    return [_on_host(number, getattr(optimizer, number.setting)) for number in numbers]


def as_vector(optimizer: Optimizer, numbers: Sequence[Number], plain: Tensor) -> Tensor:
    """The numbers of now, (numbers,) float64.

    Args:
        optimizer: the SGDPlus.
        numbers: of its rule.
        plain: (numbers,) float64, as `on_host` gives them.
    """
    held = [getattr(optimizer, number.setting) for number in numbers]
    if not any(map(is_held, held)):
        return plain
    parts = [
        tf.cast(tf.convert_to_tensor(value), tf.float64) if is_held(value) else plain[i]
        for i, value in enumerate(held)
    ]
    return tf.stack(parts)


def by_name(numbers: Sequence[Number], vector: Tensor) -> dict[str, Tensor]:
    """The numbers of a vector, (numbers,) float64, by their names."""
    names = [number.name for number in numbers]
    return dict(zip(names, tf.unstack(vector, len(names)), strict=True))


def switch(value: Any) -> Any:
    """The fact about a setting that is fixed in a compiled loop.

    None, or whether the number is above zero; a variable is itself.
    """
    return value if value is None or is_held(value) else _is_positive(value)


def is_held(value: Any) -> bool:
    """Whether the value of a setting is in a variable, which the loop reads."""
    return isinstance(value, (tf.Variable, keras.Variable))


def _on_host(number: Number, value: Any) -> float:
    if not isinstance(value, python_numbers.Real):  # no part of the rule needs it
        return 0.0
    plain = float(value)
    return number.of(plain) if plain > 0 else plain


def _is_positive(value: Any) -> bool:
    return isinstance(value, python_numbers.Real) and float(value) > 0
