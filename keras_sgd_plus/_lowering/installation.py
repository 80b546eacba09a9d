"""Puts the lowered forms into Keras's backend, and takes them out again.

Each wrapper calls Keras's own function unless a loop is being traced in the same
thread. Where Keras does not have a function, or has it with other parameters or
defaults, its own stays.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import keras

from keras_sgd_plus._lowering import scope
from keras_sgd_plus._lowering.keras_functions import LOWERINGS
from keras_sgd_plus._private import keras_backend, names

_MARK = "_keras_sgd_plus_native"
_warned: set[str] = set()  # functions that this process was warned of


def install() -> None:
    """Wraps functions of Keras's backend, each once; warns once of those it cannot."""
    missing = []
    for name, modules in keras_backend.lowered_functions().items():
        lowering = LOWERINGS[name]
        fitting = [m for m in modules if _same_signature(getattr(m, name), lowering)]
        for module in fitting:
            native: Any = getattr(module, name)
            if not hasattr(native, _MARK):
                setattr(module, name, _lowered(native, lowering))
        if not fitting:
            missing.append(name)
    if missing and scope.is_on() and not _warned.issuperset(missing):
        _warned.update(missing)
        warnings.warn(_slower(missing))


def uninstall() -> None:
    """Gives Keras its own functions back."""
    for name, modules in keras_backend.lowered_functions().items():
        for module in modules:
            current = getattr(module, name)
            setattr(module, name, getattr(current, _MARK, current))


def is_installed(name: str) -> bool:
    """Whether Keras's function of that name is wrapped."""
    modules = keras_backend.lowered_functions()[name]
    return any(hasattr(getattr(module, name), _MARK) for module in modules)


def _same_signature(native: Any, lowering: Any) -> bool:
    # Names, kinds and defaults: the lowered form fills in its own defaults.
    signatures = [
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (native, lowering)
    ]
    return signatures[0] == signatures[1]


def _lowered(native: Any, lowering: Any) -> Any:
    @functools.wraps(native)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        found = None
        if scope.is_active():
            found = lowering(*args, **kwargs)
        return native(*args, **kwargs) if found is None else found

    setattr(dispatch, _MARK, native)
    return dispatch


def _slower(missing: list[str]) -> str:
    return (
        "SGDPlus wraps functions of Keras's TensorFlow backend, for forms that XLA "
        f"compiles better. Received: Keras {keras.__version__}, in which "
        f"{', '.join(missing)} cannot be found or have other parameters. Training is "
        "right, but slower in models that use them. Install versions that have them: "
        f"{names.INSTALL}."
    )
