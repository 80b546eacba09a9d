"""The arguments of SGDPlus: one table, and all that follows from it.

`OF_SGD` and `OWN` have a row per argument: what it must be, what to use instead, and
the check of a value. `SGDPlus.__init__` passes its arguments through these checks, so
that Python's own numbers reach Keras. Keras refuses some values late, in TensorFlow's
words, or never: those are refused here, all others are left to it.

An attribute of the class that is a `Setting` may be assigned on a live optimizer. The
same row checks it, and it has no effect but on the optimizer: the next batch finds out
whether it needs another compiled loop (`_rule.rule.compiled_for`).

A check takes a value and gives the one to keep. It raises `_OutOfRange` for a value of
the right kind, and whatever it likes for one of another kind: `checked` writes the
message.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import math
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule import parts, rule

Check = Callable[[object], Any]
_P = ParamSpec("_P")
_MAX_INT = 2**63 - 1  # of the counters in which Keras and TensorFlow hold them
_MAX_SHOWN = 200  # characters of a value
_VARIABLES = (tf.Variable, keras.Variable)


class _OutOfRange(Exception):
    # A value of the right kind that cannot be. (An int that no float holds raises
    # OverflowError, which means the same.)
    pass


def _largest() -> float:
    # Weights are of this type, and larger numbers are infinite in it.
    return float(tf.as_dtype(keras.config.floatx()).max)


def _is_finite(value: float) -> bool:
    return abs(value) <= _largest()


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _word(*words: str) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise _OutOfRange
        return value

    return check


def _int(low: float, high: int = _MAX_INT) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        found = operator.index(value)
        if not low <= found <= high:
            raise _OutOfRange
        return found

    return check


def _number(
    is_right: Callable[[float], bool], kept: tuple[type, ...] = _VARIABLES
) -> Check:
    # Objects of the types `kept` stay as they are: the loop reads a variable.
    def check(value: object) -> object:
        found = _float(value)
        if not is_right(found):
            raise _OutOfRange
        return value if isinstance(value, kept) else found

    return check


def _clip(is_right: Callable[[float], bool]) -> Check:
    # Values that Keras takes for no clipping are kept. Variables are refused, since it
    # compares them in Python, once.
    def check(value: object) -> object:
        if _is_false(value):
            return value
        if isinstance(value, _VARIABLES):
            raise TypeError
        return _number(is_right)(value)

    return check


def _float(value: object) -> float:
    scalar = np.asarray(value).item()
    if isinstance(scalar, (str, bytes)):
        raise TypeError
    return float(scalar)


def _is_false(value: object) -> bool:
    try:
        return not value
    except Exception:  # of an array, a variable, a symbolic tensor
        return False


def _count(value: Any) -> object:
    # Values that Keras takes for "off" are kept.
    if _is_false(value) or isinstance(value, (bool, np.bool_)):
        return value
    is_one = isinstance(value, np.ndarray) and value.size == 1
    return _int(-math.inf)(value.item() if is_one else value)


def _seed(value: object) -> int:
    return _derived_seed() if value is None else _int(0)(value)


def _derived_seed() -> int:
    """A seed from Python's generator, which `keras.utils.set_random_seed` sets.

    A digest of its state and no draw from it: a model that is made afterwards must have
    the same initial weights with SGDPlus and with SGD.
    """
    digest = hashlib.sha256(repr(random.getstate()).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _jit_compile(value: object) -> bool | str:
    is_flag = isinstance(value, (bool, np.bool_))
    return bool(value) if is_flag else _word("auto")(value)


def _fraction(value: object) -> float:
    if isinstance(np.asarray(value).item(), bool):
        raise TypeError
    return _number(lambda x: 0 < x <= 1, kept=())(value)


def _python_float(value: object) -> object:
    # Keras takes no other numbers for the learning rate and the momentum.
    is_number = isinstance(value, (int, np.integer, np.floating))
    return float(value) if is_number and not isinstance(value, bool) else value


def _learning_rate(value: object) -> object:
    if isinstance(value, str):  # AUTO has been taken out
        raise _OutOfRange
    found = _python_float(value)
    if isinstance(found, float) and not _is_finite(found):
        raise _OutOfRange
    is_schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    if callable(value) and not is_schedule and not _takes_nothing(value):
        raise TypeError
    return found


def _live_learning_rate(value: object) -> object:
    # All scalars can be assigned, those of Python, NumPy and TensorFlow. TensorFlow
    # itself checks the ones that have no value yet.
    if callable(value):  # schedules, too
        return _learning_rate(value)
    is_of_tensorflow = isinstance(value, (tf.Tensor, *_VARIABLES))
    has_value = tf.executing_eagerly() or not is_of_tensorflow
    if has_value and np.ndim(value):
        raise TypeError
    if has_value and not _is_finite(_float(value)):
        raise _OutOfRange
    return value


def _takes_nothing(function: Callable[..., object]) -> bool:
    if isinstance(function, keras.Layer):  # which hides what its `call` takes
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # it does not say, as many builtins do not
        return not isinstance(function, type)
    return True


class Argument(NamedTuple):
    """What SGDPlus knows of one of its arguments.

    Attributes:
        expected: what it must be, in words.
        fix: what to use instead.
        check: of the value that `__init__` gets.
        check_live: of one that is assigned later; None: the same.
    """

    expected: str
    fix: str
    check: Check
    check_live: Check | None = None


AUTO = "auto"  # as the learning rate
_FINITE = "a number that is finite in the precision of the weights"
_FLAG = Argument("True or False", "Use True or False.", bool)
_NORM = Argument(
    "a number below infinity in the precision of the weights, or None",
    "Use 1.0, say.",
    _clip(lambda x: not x > _largest()),
)
# In the order of `keras.optimizers.SGD`. A number that fails its test trains to NaN.
OF_SGD = {
    "learning_rate": Argument(
        f'{_FINITE}, "auto", a LearningRateSchedule, or a callable without arguments',
        "Use 0.01, say, or an object of `keras.optimizers.schedules` for a function of "
        "the number of updates.",
        _learning_rate,
        _live_learning_rate,
    ),
    "momentum": Argument(
        "a float from 0 to 1",
        "Use 0.9, say.",
        _python_float,
        _number(lambda x: 0 <= x <= 1, kept=()),
    ),
    "nesterov": _FLAG,
    "weight_decay": Argument(
        f"{_FINITE}, or None", "Use 1e-4, say.", _or_none(_number(_is_finite))
    ),
    "clipnorm": _NORM,
    "clipvalue": Argument("a number, or None", "Use 0.5, say.", _clip(lambda x: True)),
    "global_clipnorm": _NORM,
    "use_ema": _FLAG,
    "ema_momentum": Argument(
        "a number from 0 to 1",
        "Use 0.99, say.",
        _number(lambda x: not math.isnan(x)),
    ),
    "ema_overwrite_frequency": Argument(
        "an int from 1 to 2**63 - 1, or None", "Use None to switch it off.", _count
    ),
    "loss_scale_factor": Argument(
        f"{_FINITE} and other than 0, or None",
        "Use 1024.0, say.",
        _or_none(_number(lambda x: x != 0 and _is_finite(x))),
    ),
    "gradient_accumulation_steps": Argument(
        "an int from 2 to 2**63 - 1, or None", "Use None to switch it off.", _count
    ),
}
_OF_AVERAGES = ("ema_momentum", "ema_overwrite_frequency")  # unused without `use_ema`
OWN = {
    "examples_per_update": Argument(
        "an int from 1 to 2**24, or None",
        "Use 1 for one update per example, k for one per k examples, None for one per "
        "batch as keras.optimizers.SGD.",
        # TensorFlow holds the positions of a group as a constant: more take gigabytes.
        _or_none(_int(1, 2**24)),
    ),
    "order": Argument(
        '"reshuffle" or "given"',
        'Use "reshuffle" for a fresh random order of each batch, "given" to visit '
        "examples as they are handed over.",
        _word("reshuffle", "given"),
    ),
    "seed": Argument(
        "None or an int from 0 to 2**63 - 1",
        "Use seed=None to derive one from `keras.utils.set_random_seed`.",
        _seed,
    ),
    "nonfinite": Argument(
        '"propagate", "skip" or "raise"',
        'Use "skip" to leave out examples whose loss or gradients are not finite, '
        '"raise" to stop at the first.',
        _word("propagate", "skip", "raise"),
    ),
    "jit_compile": Argument(
        '"auto", True or False',
        'Use "auto" for XLA wherever the model can.',
        _jit_compile,
    ),
    "max_loss_fraction": Argument(
        "a number above 0 and up to 1, or None",
        "Use 1.0 for data without noise, 0.3 for noisy labels, None to switch it off.",
        _or_none(_fraction),
    ),
}
ARGUMENTS = {**OF_SGD, **OWN}


def backend(who: str) -> None:
    """Raises RuntimeError unless Keras runs on TensorFlow; `who` needs it."""
    name = keras.backend.backend()
    if name != "tensorflow":
        raise RuntimeError(
            f"{who} needs the TensorFlow backend. Received: keras.backend.backend()="
            f"{name!r}. Set KERAS_BACKEND=tensorflow before importing keras."
        )


def checked(name: str, value: object, is_live: bool = False) -> object:
    """The value to keep for an argument; raises TypeError or ValueError.

    Args:
        name: of the argument.
        value: as a user gave it.
        is_live: whether it is assigned after `__init__`.
    """
    argument, error = ARGUMENTS[name], TypeError
    check = (argument.check_live if is_live else None) or argument.check
    try:
        return check(value)
    except (_OutOfRange, OverflowError):
        error = ValueError
    except Exception:  # whatever the conversion of an object raises
        pass
    raise error(
        f"`{name}` must be {argument.expected}. Received: {name}={shown(value)}. "
        f"{argument.fix}"
    )


def of_sgd(given: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of `keras.optimizers.SGD` but its name, checked.

    Args:
        given: the arguments of `SGDPlus`, by name.
    """
    names = set(OF_SGD)
    if not checked("use_ema", given["use_ema"]):
        names.difference_update(_OF_AVERAGES)
    return {
        name: checked(name, given[name]) if name in names else given[name]
        for name in OF_SGD
    }


def check_together(optimizer: Optimizer) -> None:
    """Raises ValueError or NotImplementedError for settings that contradict others."""
    if optimizer.max_loss_fraction is not None:
        parts.refuse_with_fraction(optimizer)
    if optimizer.examples_per_update is not None:
        replicas.check()
    elif optimizer.is_auto:
        raise ValueError(
            'SGDPlus("auto") must update per example. Received: examples_per_update='
            "None. Set examples_per_update to 1 or more, or give SGDPlus a number."
        )
    elif optimizer.nonfinite != "propagate":
        raise ValueError(
            '`nonfinite` must be "propagate" with examples_per_update=None. Received: '
            f"nonfinite={optimizer.nonfinite!r}. Set examples_per_update to 1 or more, "
            "whose loop sees each loss and gradient."
        )


class Setting:
    """An argument that is an attribute, too: checked, whoever assigns it and when."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._kept = name, f"_{name}"

    def __get__(self, instance: Optimizer | None, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance, self._kept)

    def __set__(self, instance: Optimizer, value: object) -> None:
        if self._name not in _OF_AVERAGES or instance.use_ema:
            value = checked(self._name, value, is_live=True)
        before = vars(instance).get(self._kept, value)
        setattr(instance, self._kept, value)
        if any(f"_{name}" not in vars(instance) for name in OWN):
            return  # `__init__` has not assigned all of them
        try:
            check_together(instance)
        except (ValueError, NotImplementedError):
            setattr(instance, self._kept, before)
            raise
        rule.refresh_numbers(instance)


def assign_learning_rate(optimizer: Optimizer, value: object) -> None:
    """Keras's setter of `learning_rate`, after a check."""
    if isinstance(value, str) and value == AUTO:
        optimizer.is_auto = optimizer.waits_for_rate = True
        check_together(optimizer)
        return
    checked("learning_rate", value, is_live=True)
    optimizer.is_auto = optimizer.waits_for_rate = False
    of_keras: Any = keras.optimizers.SGD.learning_rate
    of_keras.fset(optimizer, value)


def shown(value: object) -> str:
    """A value as messages show it: cut where it is long, with its quote closed."""
    try:
        text = repr(value)
    except Exception:  # an int of 5,000 digits raises, too
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...{text[-1]}"


def as_call(optimizer: Optimizer, derived_seed: int | None) -> str:
    """The call that makes such an optimizer, with what differs from the defaults.

    Args:
        optimizer: the SGDPlus.
        derived_seed: its seed if that was derived, or None.
    """
    given = []
    for name, parameter in inspect.signature(type(optimizer)).parameters.items():
        default = parameter.default
        is_rate = name == "learning_rate"
        value = _rate(optimizer) if is_rate else getattr(optimizer, name, default)
        is_derived = (name == "seed" and value == derived_seed) or (
            name == "name" and _DERIVED_NAME.fullmatch(str(value))
        )
        is_default = value is default or (
            isinstance(value, (int, float, str)) and value == default
        )
        if not (is_default or is_derived):
            given.append(f"{name}={shown(value)}")
    return f"{type(optimizer).__name__}({', '.join(given)})"


_DERIVED_NAME = re.compile(r"sgd_plus(_\d+)?")


class _Shown(str):
    # A text whose repr has no quotes.
    __repr__ = str.__str__


def _rate(optimizer: Optimizer) -> object:
    try:
        if optimizer.is_auto:
            return AUTO
        found = keras_optimizer.schedule(optimizer)
        if found is None:
            return float(f"{float(optimizer.learning_rate.numpy()):.7g}")
        return _Shown(f"<{getattr(found, '__name__', type(found).__name__)}>")
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
# Methods of other optimizers -> what to do here.
_NO_SUCH_METHOD = {
    "minimize": "Write model.fit(x, y), or optimizer.train_step(model, (x, y))",
    "step": "Write model.fit(x, y), or optimizer.train_step(model, (x, y))",
    "zero_grad": "Leave it out: gradients are made anew for each example",
}


def refuses_others(init: Callable[_P, None]) -> Callable[_P, None]:
    """An `__init__` that first refuses keyword arguments that it does not have.

    Editors, type checkers and `inspect` go on to see the arguments of the original.
    """
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked_init(*args: _P.args, **kwargs: _P.kwargs) -> None:
        unknown = {k: v for k, v in kwargs.items() if k not in names}
        if unknown:
            received = ", ".join(f"{k}={shown(v)}" for k, v in unknown.items())
            fixes = ". ".join(_fix(k, v, names) for k, v in unknown.items())
            raise TypeError(
                "SGDPlus must be given arguments that it has. Received: "
                f"{received}. {fixes}."
            )
        init(*args, **kwargs)

    return checked_init


def _fix(name: str, value: object, names: Sequence[str]) -> str:
    if name in _NO_SUCH_THING:
        return _NO_SUCH_THING[name].format(shown(value))
    close = difflib.get_close_matches(name.lower(), names, n=1)
    meant = _OTHER_NAMES.get(name.lower(), close[0] if close else None)
    if meant is None:
        return f"Leave {name} out: the arguments are {', '.join(names)}"
    return f"Write {meant}={shown(value)}"


def refuse_lr(optimizer: Optimizer, value: object) -> None:
    """The setter of an attribute that Keras once had: it would change nothing."""
    del optimizer
    raise AttributeError(
        "The setting `learning_rate` must be assigned by its name. Received: "
        f"lr={shown(value)}. Write optimizer.learning_rate = {shown(value)}."
    )


def no_attribute(owner: str, name: str) -> AttributeError:
    """The error for an attribute that SGDPlus, or a class made from it, lacks."""
    text = f"{owner!r} object has no attribute {name!r}"
    if name in _NO_SUCH_METHOD:
        text = (
            f"SGDPlus must be called as an optimizer of Keras. Received: .{name}. "
            f"{_NO_SUCH_METHOD[name]}."
        )
    return AttributeError(text)
