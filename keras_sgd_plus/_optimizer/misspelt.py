"""Arguments that SGDPlus does not have: the message names the one that is meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from keras_sgd_plus._optimizer.arguments import shown

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
