"""Checks the arguments of SGDPlus, and turns numbers into Python's own.

Arguments that SGDPlus does not have: the message names the one that is meant.

Checks the arguments that `keras.optimizers.SGD` has, too.

Keras refuses some values late, in TensorFlow's words, or never: those are refused here.
All others are left to it.

Arguments that may be assigned on a live optimizer: checked, then taken up.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._batch import walk_batch
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
    return (
        walk_batch.derived_seed() if value is None else int_in(0, MAX_INT, seed=value)
    )


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


# Names in other libraries and versions -> ours. difflib finds the misspelt ones.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "rate": "learning_rate",
    "eta": "learning_rate",
    "eta0": "learning_rate",
    "mu": "momentum",
    "jit": "jit_compile",
    "random_state": "seed",
}
_NO_SUCH_THING = {  # the line to write where no argument has that meaning
    "decay": (
        "Write learning_rate=keras.optimizers.schedules.InverseTimeDecay(0.01, 1, {}) "
        "for the decay that Keras had before 2.11; weight_decay shrinks the weights"
    ),
    "shuffle": 'Write order="given" to visit examples as they are handed over',
    "batch_size": (
        "Write fit(batch_size={0}), or examples_per_update={0} to average the "
        "gradients of several examples"
    ),
}


_P = ParamSpec("_P")
# Methods of other optimizers -> what to do here.
_NO_SUCH_METHOD = {
    "minimize": "Write model.fit(x, y), or optimizer.train_step(model, (x, y))",
    "step": "Write model.fit(x, y), or optimizer.train_step(model, (x, y))",
    "zero_grad": "Leave it out: gradients are made anew for each example",
}


def refused(init: Callable[_P, None]) -> Callable[_P, None]:
    """An `__init__` that first refuses keyword arguments that it does not have.

    Editors, type checkers and `inspect` go on to see the arguments of the original.
    """
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> None:
        refuse({k: v for k, v in kwargs.items() if k not in names}, names)
        init(*args, **kwargs)

    return checked


def no_attribute(owner: str, name: str) -> AttributeError:
    """The error for an attribute that SGDPlus, or a class made from it, lacks."""
    text = f"{owner!r} object has no attribute {name!r}"
    if name in _NO_SUCH_METHOD:
        text = (
            f"SGDPlus must be called as an optimizer of Keras. Received: .{name}. "
            f"{_NO_SUCH_METHOD[name]}."
        )
    return AttributeError(text)


def refuse(unknown: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises TypeError for unknown keyword arguments, if there are any.

    Args:
        unknown: values by name.
        names: of the arguments that there are.
    """
    if not unknown:
        return
    received = ", ".join(f"{name}={shown(value)}" for name, value in unknown.items())
    fixes = [_fix(name, value, names) for name, value in unknown.items()]
    raise TypeError(
        f"SGDPlus must be given arguments that it has. Received: {received}. "
        f"{'. '.join(fixes)}."
    )


def _fix(name: str, value: Any, names: Sequence[str]) -> str:
    if name in _NO_SUCH_THING:
        return _NO_SUCH_THING[name].format(shown(value))
    close = difflib.get_close_matches(name.lower(), names, n=1)
    meant = _OTHER_NAMES.get(name.lower(), close[0] if close else None)
    if meant is None:
        return f"Leave {name} out: the arguments are {', '.join(names)}"
    return f"Write {meant}={shown(value)}"


class OldName:
    """An attribute that Keras once had: assigning it would change nothing, silently."""

    def __init__(self, new_name: str) -> None:
        self._new_name = new_name

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        raise AttributeError(self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(
            f"The setting `{self._new_name}` must be assigned by its name. Received: "
            f"{self._name}={shown(value)}. Write "
            f"optimizer.{self._new_name} = {shown(value)}."
        )


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
