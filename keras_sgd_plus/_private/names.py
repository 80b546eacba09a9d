"""How this folder looks private names up, and the error where one is missing.

A private name may be moved, renamed or given other parameters by any release of Keras
or TensorFlow. The other modules here reach such names through these functions alone.
A missing one is then one error, which names it and the versions that have it.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

# Versions that the tests were run with.
INSTALL = 'pip install "keras>=3.13.2,<3.16" "tensorflow>=2.17,<2.22"'
_LIBRARIES = ("keras", "tensorflow")
_MISSING = object()


def unusable(needed: str, received: str) -> RuntimeError:
    """The error for a private name that is not as it was.

    Args:
        needed: the name, and where it is looked for.
        received: what is there instead, after "which".
    """
    return RuntimeError(
        f"SGDPlus needs {needed}. Received: Keras {keras.__version__} and TensorFlow "
        f"{tf.__version__}, which {received}. Install versions that have it: {INSTALL}."
    )


def attribute(owner: Any, name: str) -> Any:
    """A private attribute of an object, class or module.

    Raises:
        RuntimeError: it has none of that name.
    """
    found = getattr(owner, name, _MISSING)
    if found is _MISSING:
        raise unusable(f"{_title(owner)}.{name}", "do not have it")
    return found


def call(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a private method of an object, or a private function of a module.

    Raises:
        RuntimeError: it is missing, or does not take these arguments.
    """
    method = attribute(owner, name)
    signature = inspect.signature(method)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        taken = ", ".join([*("_" for _ in args), *(f"{k}=..." for k in kwargs)])
        raise unusable(
            f"{_title(owner)}.{name}({taken})", f"have {name}{signature}"
        ) from None
    return method(*args, **kwargs)


def modules(*places: str) -> list[ModuleType]:
    """Those private modules that exist; Keras may have moved a module."""
    found = []
    for place in places:
        try:
            found.append(importlib.import_module(place))
        except ModuleNotFoundError:
            continue
    return found


def module(*places: str) -> ModuleType:
    """A private module: the first that exists of the places where it may be.

    Raises:
        RuntimeError: it is missing.
    """
    found = modules(*places)
    if not found:
        raise unusable(places[-1], "do not have it")
    return found[0]


def _title(owner: Any) -> str:
    # A class by the name that its library gave it, without the user's subclasses.
    if isinstance(owner, ModuleType):
        return owner.__name__
    classes = (owner if isinstance(owner, type) else type(owner)).__mro__
    theirs = [c for c in classes if c.__module__.split(".")[0] in _LIBRARIES]
    return (theirs or classes)[0].__name__
