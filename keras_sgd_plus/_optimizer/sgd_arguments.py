"""Checks the arguments that `keras.optimizers.SGD` has, too.

Keras refuses some values late, in TensorFlow's words, or never: those are refused here.
All others are left to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._optimizer.arguments import MAX_INT, int_in, message

_OF_TENSORFLOW = (tf.Tensor, tf.Variable, keras.Variable)
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def _largest() -> float:
    # Weights are of this type, and larger numbers are infinite in it.
    return float(tf.as_dtype(keras.config.floatx()).max)


def _is_finite(value: float) -> bool:
    return abs(value) <= _largest()


_TRAINS: dict[str, Callable[[float], bool]] = {  # with others there is only NaN
    "weight_decay": _is_finite,
    "clipnorm": lambda x: not x > _largest(),
    "clipvalue": lambda x: True,
    "global_clipnorm": lambda x: not x > _largest(),
    "ema_momentum": lambda x: not math.isnan(x),
    "loss_scale_factor": lambda x: x != 0 and _is_finite(x),
}


def learning_rate(value: Any) -> Any:
    """Gives it, ints and NumPy's numbers as floats.

    Raises for one that is not finite, and for a callable that takes arguments.
    """
    schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    found = _as_float(value)
    if isinstance(found, float) and not _is_finite(found):
        raise ValueError(message(learning_rate=value))
    if callable(value) and not schedule and not _takes_nothing(value):
        raise TypeError(message(learning_rate=value))
    return found


def live_learning_rate(value: Any) -> None:
    """Raises for a value that cannot be assigned on a live optimizer.

    All scalars can be, those of Python, NumPy and TensorFlow. TensorFlow itself checks
    the ones that have no value yet.
    """
    if callable(value):  # schedules, too
        learning_rate(value)
        return
    if not tf.executing_eagerly() and isinstance(value, _OF_TENSORFLOW):
        return
    try:
        found = _float(value)
    except Exception:  # whatever the conversion of an object raises
        raise TypeError(message(learning_rate=value)) from None
    if np.ndim(value):
        raise TypeError(message(learning_rate=value))
    if not _is_finite(found):
        raise ValueError(message(learning_rate=value))


def momentum(value: Any) -> Any:
    """Gives it, ints and NumPy's numbers as floats; raises for NaN."""
    value = _as_float(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(message(momentum=value))
    return value


def assigned_momentum(value: Any) -> float:
    """Gives a float from 0 to 1; raises for what a live optimizer cannot take."""
    try:
        found = _float(value)
    except Exception:  # whatever the conversion of an object raises
        raise TypeError(message(momentum=value)) from None
    if not 0 <= found <= 1:
        raise ValueError(message(momentum=value))
    return found


def assigned(name: str) -> Callable[[Any], Any]:
    """The check, as of `number`, of one argument that is assigned."""
    return lambda value: number(**{name: value})


def of_sgd(**given: Any) -> dict[str, Any]:
    """The arguments of `keras.optimizers.SGD`, checked, with Python's own numbers.

    Out-of-range values that Keras refuses itself are left to it.
    """
    own = {
        "learning_rate": learning_rate(given["learning_rate"]),
        "momentum": momentum(given["momentum"]),
    }
    flags, counts = ["nesterov", "use_ema"], ["gradient_accumulation_steps"]
    numbers = [name for name in _TRAINS if name != "ema_momentum"]
    if flag(use_ema=given["use_ema"]):  # else Keras does not look at these
        numbers.append("ema_momentum")
        counts.append("ema_overwrite_frequency")
    checked = {**given, **own}
    for names, check in ((flags, flag), (numbers, number), (counts, count)):
        checked.update({name: check(**{name: given[name]}) for name in names})
    return checked


def number(**argument: Any) -> Any:
    """Gives a float; raises if the argument is no number, or one that gives only NaN.

    None, values that Keras takes for no clipping, and variables are returned as they
    are.
    """
    ((name, value),) = argument.items()
    if value is None and name != "ema_momentum":
        return value
    if name in _CLIPS and _is_false(value):
        return value
    changes = isinstance(value, (tf.Variable, keras.Variable))
    found, error = math.nan, None
    try:
        found = _float(value)
        if not _TRAINS[name](found):
            error = ValueError
    except OverflowError:
        error = ValueError
    except Exception:  # whatever the conversion of an object raises
        error = TypeError
    if changes and name in _CLIPS:  # they are compared in Python, once
        error = TypeError
    if error is not None:
        raise error(message(**argument))
    return value if changes else found


def count(**argument: Any) -> Any:
    """Gives a Python int; raises if the argument is no integer, or too large for Keras.

    Values that Keras takes for "off" are returned as they are.
    """
    ((name, value),) = argument.items()
    if _is_false(value) or isinstance(value, (bool, np.bool_)):
        return value
    one = isinstance(value, np.ndarray) and value.size == 1
    return int_in(-math.inf, MAX_INT, **{name: value.item() if one else value})


def flag(**argument: Any) -> bool:
    """Gives True or False; raises if the argument has no truth value."""
    ((_, value),) = argument.items()
    try:
        return bool(value)
    except Exception:  # of an array, a variable, a symbolic tensor
        raise TypeError(message(**argument)) from None


def _float(value: Any) -> float:
    scalar = np.asarray(value).item()
    if isinstance(scalar, (str, bytes)):
        raise TypeError
    return float(scalar)


def _as_float(value: Any) -> Any:
    # Keras takes no other numbers for these two.
    is_number = isinstance(value, (int, np.integer, np.floating))
    if not is_number or isinstance(value, (bool, float)):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_false(value: Any) -> bool:
    try:
        return not value
    except Exception:  # as in `flag`
        return False


def _takes_nothing(function: Any) -> bool:
    if isinstance(function, keras.Layer):  # which hides what its `call` takes
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # it does not say, as many builtins do not
        return not isinstance(function, type)
    return True
