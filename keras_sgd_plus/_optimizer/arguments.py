"""Checks the arguments of SGDPlus, and turns numbers into Python's own."""

from __future__ import annotations

import inspect
import operator
import re
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import _step
from keras_sgd_plus._private import keras_optimizer

ORDERS = ("reshuffle", "given")
NONFINITE = ("propagate", "skip", "raise")
MAX_INT = 2**63 - 1  # of the counters in which Keras and TensorFlow hold them

# Per argument: the values that it may have, and one to use instead.
_CLIP = "a number below infinity in the precision of the weights, or None"
_FINITE = "a number that is finite in the precision of the weights"
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
    "max_loss_fraction": (
        "a number above 0 and up to 1, or None",
        "Use 1.0 for data without noise, 0.3 for noisy labels, None to switch it off.",
    ),
    "learning_rate": (
        f"{_FINITE}, a LearningRateSchedule, or a callable without arguments",
        "Use 0.01, say, or an object of `keras.optimizers.schedules` for a function of "
        "the number of updates.",
    ),
    "momentum": ("a float from 0 to 1", "Use 0.9, say."),
    "nesterov": _FLAG,
    "weight_decay": (f"{_FINITE}, or None", "Use 1e-4, say."),
    "clipnorm": (_CLIP, "Use 1.0, say."),
    "clipvalue": ("a number, or None", "Use 0.5, say."),
    "global_clipnorm": (_CLIP, "Use 1.0, say."),
    "use_ema": _FLAG,
    "ema_momentum": ("a number from 0 to 1", "Use 0.99, say."),
    "ema_overwrite_frequency": ("an int from 1 to 2**63 - 1, or None", _OFF),
    "loss_scale_factor": (
        f"{_FINITE} and other than 0, or None",
        "Use 1024.0, say.",
    ),
    "gradient_accumulation_steps": ("an int from 2 to 2**63 - 1, or None", _OFF),
}
_MAX_SHOWN = 200  # characters of a value


def backend(who: str) -> None:
    """Raises RuntimeError unless Keras runs on TensorFlow; `who` needs it."""
    name = keras.backend.backend()
    if name != "tensorflow":
        raise RuntimeError(
            f"{who} needs the TensorFlow backend. Received: keras.backend.backend()="
            f"{name!r}. Set KERAS_BACKEND=tensorflow before importing keras."
        )


def examples_per_update(value: Any) -> int | None:
    """Gives None or a Python int; raises if the argument is no int or out of range."""
    # TensorFlow holds the positions of a group as a constant: more take gigabytes.
    return None if value is None else int_in(1, 2**24, examples_per_update=value)


def order(value: Any) -> str:
    """Gives one of the orders; raises for others."""
    return _one_of(ORDERS, order=value)


def seed(value: Any) -> int:
    """Gives a Python int, a derived one for None; raises if it is no int of 63 bits."""
    return _step.derived_seed() if value is None else int_in(0, MAX_INT, seed=value)


def nonfinite(value: Any) -> str:
    """Gives one of the ways to treat bad examples; raises for others."""
    return _one_of(NONFINITE, nonfinite=value)


def jit_compile(value: Any) -> bool | str:
    """Gives "auto", True or False; raises if the argument is none of them."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return _one_of(("auto",), jit_compile=value)


def max_loss_fraction(value: Any) -> float | None:
    """Gives None or a float above 0 and up to 1; raises for others."""
    if value is None:
        return None
    try:
        found = np.asarray(value).item()
        if isinstance(found, (bool, str, bytes)):
            raise TypeError
        found = float(found)
    except Exception:  # whatever the conversion of an object raises
        raise TypeError(message(max_loss_fraction=value)) from None
    if not 0 < found <= 1:
        raise ValueError(message(max_loss_fraction=value))
    return found


def int_in(low: float, high: int, **argument: Any) -> int:
    """Gives a Python int from `low` to `high`; raises for others and for bools."""
    ((_, value),) = argument.items()
    found = _integer(value)
    if found is None:
        raise TypeError(message(**argument))
    if not low <= found <= high:
        raise ValueError(message(**argument))
    return found


def _one_of(words: tuple[str, ...], **argument: Any) -> str:
    ((_, value),) = argument.items()
    if not isinstance(value, str) or value not in words:
        raise ValueError(message(**argument))
    return value


def _integer(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except Exception:  # TypeError, and AttributeError of a tensor
        return None


def message(**named: Any) -> str:
    """The message about an argument, given by its name."""
    ((name, value),) = named.items()
    expected, fix = _ARGUMENTS[name]
    return f"`{name}` must be {expected}. Received: {name}={shown(value)}. {fix}"


def shown(value: Any) -> str:
    """A value as messages show it: cut where it is long, with its quote closed."""
    try:
        text = repr(value)
    except Exception:  # an int of 5,000 digits raises, too
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...{text[-1]}"


def as_call(optimizer: Any, derived_seed: int | None) -> str:
    """The call that makes such an optimizer, with what differs from the defaults.

    Args:
        optimizer: the SGDPlus.
        derived_seed: its seed if that was derived, or None.
    """
    parts = []
    for name, parameter in inspect.signature(type(optimizer)).parameters.items():
        value = getattr(optimizer, name, parameter.default)
        if name == "learning_rate":
            value = _rate(optimizer)
        is_derived = (name == "seed" and value == derived_seed) or (
            name == "name" and _DERIVED_NAME.fullmatch(str(value))
        )
        is_default = value is parameter.default or (
            isinstance(value, (int, float, str)) and value == parameter.default
        )
        if not (is_default or is_derived):
            parts.append(f"{name}={shown(value)}")
    return f"{type(optimizer).__name__}({', '.join(parts)})"


_DERIVED_NAME = re.compile(r"sgd_plus(_\d+)?")


class _Shown(str):
    # A text whose repr has no quotes.
    __repr__ = str.__str__


def _rate(optimizer: Any) -> Any:
    try:
        found = keras_optimizer.schedule(optimizer)
        if found is not None:
            name = getattr(found, "__name__", type(found).__name__)
            return _Shown(f"<{name}>")
        return float(f"{float(optimizer.learning_rate.numpy()):.7g}")
    except Exception:  # `__init__` has not ended, or a graph is traced
        return _Shown("?")
