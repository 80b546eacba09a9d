"""Puts the lowered forms into Keras's backend, and takes them out again.

A form has the name and the arguments of the backend's function that it stands in for,
and returns None where that is to be used: for what it does not cover, and where it was
not measured to win. The wrapper of a function calls the form only while a loop is
traced in the same thread. Where Keras does not have a function, or has it with other
parameters or defaults, its own stays.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_sgd_plus._forms import convolution, layout, pooled, reductions, tracing
from keras_sgd_plus._private import keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Tensor

LOWERINGS = {
    "conv": convolution.conv,
    "depthwise_conv": convolution.depthwise_conv,
    "separable_conv": convolution.separable_conv,
    "max_pool": pooled.max_pool,
    "batch_normalization": reductions.batch_normalization,
    "moments": reductions.moments,
    "sparse_categorical_crossentropy": reductions.sparse_categorical_crossentropy,
    "add": reductions.add,
    "matmul": layout.matmul,
    "dropout": reductions.dropout,
    "take": tracing.take,
}
_MARK = "_keras_sgd_plus_native"
_warned: set[str] = set()  # functions that this process was warned of


def install() -> None:
    """Wraps functions of Keras's backend, each once; warns once of those it cannot."""
    unfit = []
    for name, module in keras_optimizer.lowered_functions().items():
        native = getattr(module, name, None)
        if native is None or _signature(native) != _signature(LOWERINGS[name]):
            unfit.append(name)
        elif not hasattr(native, _MARK):
            setattr(module, name, _lowered(native, LOWERINGS[name]))
    if unfit and tracing.is_on() and not _warned.issuperset(unfit):
        _warned.update(unfit)
        warnings.warn(
            "SGDPlus wraps functions of Keras's TensorFlow backend, for forms that XLA "
            f"compiles better. Received: Keras {keras.__version__}, in which "
            f"{', '.join(unfit)} cannot be found or have other parameters. Training "
            "is right, but slower in models that use them. Install versions that have "
            f"them: {keras_trainer.INSTALL}."
        )


def uninstall() -> None:
    """Gives Keras its own functions back."""
    for name, module in keras_optimizer.lowered_functions().items():
        if is_installed(name):
            setattr(module, name, getattr(getattr(module, name), _MARK))


def is_installed(name: str) -> bool:
    """Whether Keras's function of that name is wrapped."""
    module = keras_optimizer.lowered_functions()[name]
    return hasattr(getattr(module, name, None), _MARK)


def _signature(function: Callable[..., object]) -> list[tuple[object, ...]]:
    # Names, kinds and defaults: the lowered form fills in its own defaults.
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def _lowered(
    native: Callable[..., Tensor], lowering: Callable[..., Tensor | None]
) -> Callable[..., Tensor]:
    @functools.wraps(native)
    def dispatch(*args: object, **kwargs: Any) -> Tensor:
        found = None
        if tracing.is_active():
            found = lowering(*args, **kwargs)
        return native(*args, **kwargs) if found is None else found

    setattr(dispatch, _MARK, native)
    return dispatch
