"""Checks the arguments of SGDPlus, and turns numbers into Python's own."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ORDERS = ("reshuffle", "given")
NONFINITE = ("propagate", "skip", "raise")
MAX_INT = 2**63 - 1  # of the counters in which Keras and TensorFlow hold them

# Per argument: the values that it may have, and one to use instead.
_CLIP = "a number below infinity, or None"
_OFF = "Use None to switch it off."
_FLAG = "True or False", "Use True or False."
_ARGUMENTS = {
    "examples_per_update": (
        "an int from 1 to 2**24, or None",
        "Use 1 for one update per example, k for one per k examples, None for one per "
        "batch as keras.optimizers.SGD.",
    ),
    "order": (
        '"reshuffle" or "given"',
        'Use "reshuffle" for a fresh random order of each batch, "given" to visit '
        "examples as they are handed over.",
    ),
    "seed": (
        "None or an int from 0 to 2**63 - 1",
        "Use seed=None to derive one from `keras.utils.set_random_seed`.",
    ),
    "nonfinite": (
        '"propagate", "skip" or "raise"',
        'Use "skip" to leave out examples whose loss or gradients are not finite, '
        '"raise" to stop at the first.',
    ),
    "jit_compile": (
        '"auto", True or False',
        'Use "auto" for XLA wherever the model can.',
    ),
    "learning_rate": (
        "a finite float, a LearningRateSchedule, or a callable without arguments",
        "Use 0.01, say, or an object of `keras.optimizers.schedules` for a function of "
        "the number of updates.",
    ),
    "momentum": ("a float from 0 to 1", "Use 0.9, say."),
    "nesterov": _FLAG,
    "weight_decay": ("a finite number, or None", "Use 1e-4, say."),
    "clipnorm": (_CLIP, "Use 1.0, say."),
    "clipvalue": ("a number, or None", "Use 0.5, say."),
    "global_clipnorm": (_CLIP, "Use 1.0, say."),
    "use_ema": _FLAG,
    "ema_momentum": ("a number from 0 to 1", "Use 0.99, say."),
    "ema_overwrite_frequency": ("an int from 1 to 2**63 - 1, or None", _OFF),
    "loss_scale_factor": (
        "a finite number other than 0, or None",
        "Use 1024.0, say.",
    ),
    "gradient_accumulation_steps": ("an int from 2 to 2**63 - 1, or None", _OFF),
}
_MAX_SHOWN = 200  # characters of a value


def examples_per_update(value: Any) -> int | None:
    """Gives None or a Python int; raises if the argument is no int or out of range."""
    # TensorFlow holds the positions of a group as a constant: more take gigabytes.
    return None if value is None else _int_in(1, 2**24, examples_per_update=value)


def order(value: Any) -> str:
    """Gives one of the orders; raises for others."""
    return _one_of(ORDERS, order=value)


def seed(value: Any) -> int | None:
    """Gives None or a Python int; raises if the argument is no int of 63 bits."""
    return None if value is None else _int_in(0, MAX_INT, seed=value)


def nonfinite(value: Any) -> str:
    """Gives one of the ways to treat bad examples; raises for others."""
    return _one_of(NONFINITE, nonfinite=value)


def jit_compile(value: Any) -> bool | str:
    """Gives "auto", True or False; raises if the argument is none of them."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return _one_of(("auto",), jit_compile=value)


# Arguments of keras.optimizers.SGD. It refuses some values late, in TensorFlow's words,
# or never: those are refused here. All others are left to it.


def learning_rate(value: Any) -> None:
    """Raises for a float that is not finite, and a callable that takes arguments."""
    schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(_text(learning_rate=value))
    if callable(value) and not schedule and not _takes_nothing(value):
        raise TypeError(_text(learning_rate=value))


def momentum(value: Any) -> None:
    """Raises for NaN."""
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(_text(momentum=value))


def of_sgd(**given: Any) -> dict[str, Any]:
    """The arguments of `keras.optimizers.SGD`, checked, with Python's own numbers.

    Out-of-range values that Keras refuses itself are left to it.
    """
    learning_rate(given["learning_rate"])
    momentum(given["momentum"])
    flags, counts = ["nesterov", "use_ema"], ["gradient_accumulation_steps"]
    numbers = ["weight_decay", *_CLIPS, "loss_scale_factor"]
    if flag(use_ema=given["use_ema"]):  # else Keras does not look at these
        numbers.append("ema_momentum")
        counts.append("ema_overwrite_frequency")
    checked = dict(given)
    for names, check in ((flags, flag), (numbers, number), (counts, count)):
        checked.update({name: check(**{name: given[name]}) for name in names})
    return checked


_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
_TRAINS: dict[str, Callable[[float], bool]] = {  # with others there is only NaN
    "weight_decay": math.isfinite,
    "clipnorm": lambda x: x != math.inf,
    "clipvalue": lambda x: True,
    "global_clipnorm": lambda x: x != math.inf,
    "ema_momentum": lambda x: not math.isnan(x),
    "loss_scale_factor": lambda x: x != 0 and math.isfinite(x),
}


def number(**argument: Any) -> Any:
    """Gives a float; raises if the argument is no number, or one that gives only NaN.

    None comes back, what Keras takes for no clipping, and a variable, which may change.
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
        raise error(_text(**argument))
    return value if changes else found


def count(**argument: Any) -> Any:
    """Gives a Python int; raises if the argument is no integer, or too large for Keras.

    What Keras takes for "off" comes back.
    """
    ((name, value),) = argument.items()
    if _is_false(value) or isinstance(value, (bool, np.bool_)):
        return value
    one = isinstance(value, np.ndarray) and value.size == 1
    return _int_in(-math.inf, MAX_INT, **{name: value.item() if one else value})


def flag(**argument: Any) -> bool:
    """Gives True or False; raises if the argument has no truth value."""
    ((_, value),) = argument.items()
    try:
        return bool(value)
    except Exception:  # of an array, a variable, a symbolic tensor
        raise TypeError(_text(**argument)) from None


def _int_in(low: float, high: int, **argument: Any) -> int:
    ((_, value),) = argument.items()
    found = _integer(value)
    if found is None:
        raise TypeError(_text(**argument))
    if not low <= found <= high:
        raise ValueError(_text(**argument))
    return found


def _one_of(words: tuple[str, ...], **argument: Any) -> str:
    ((_, value),) = argument.items()
    if not isinstance(value, str) or value not in words:
        raise ValueError(_text(**argument))
    return value


def _float(value: Any) -> float:
    scalar = np.asarray(value).item()
    if isinstance(scalar, (str, bytes)):
        raise TypeError
    return float(scalar)


def _integer(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except Exception:  # TypeError, and AttributeError of a tensor
        return None


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


def _text(**named: Any) -> str:
    """The message about an argument, given by its name."""
    ((name, value),) = named.items()
    expected, fix = _ARGUMENTS[name]
    try:
        shown = repr(value)
    except Exception:  # an int of 5,000 digits raises, too
        shown = f"<{type(value).__name__}>"
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}..."
    return f"`{name}` must be {expected}. Received: {name}={shown}. {fix}"
