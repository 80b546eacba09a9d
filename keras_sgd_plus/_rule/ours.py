"""Which optimizers are ours, and whether the loop may stand for their update.

An optimizer of ours takes the place of Keras's train step. Its loop computes the rule
by itself, and calls none of the methods with which Keras makes an update. A method that
somebody has replaced would be ignored without a word, so it is refused.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer


class PerExampleOptimizer:
    """A base of `SGDPlus`, by which the rooms below it know that class."""

    examples_per_update: int | None
    is_auto = False  # whether each `fit` finds the learning rate
    waits_for_rate = False  # whether the next one is yet to find it


def unwrap(optimizer: Optimizer | None) -> Any:
    """The optimizer inside a `LossScaleOptimizer`, else the optimizer itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def is_ours(optimizer: Optimizer | None) -> bool:
    """Whether it is, or wraps, an optimizer of this package."""
    return isinstance(unwrap(optimizer), PerExampleOptimizer)


def per_example(optimizer: Optimizer | None) -> Any:
    """The optimizer that wants the train step, or None."""
    inner = unwrap(optimizer)
    wants = isinstance(inner, PerExampleOptimizer) and inner.examples_per_update
    return inner if wants else None


_STOCK = ("keras", "keras_sgd_plus")  # packages whose methods the loop stands for
_HOOKS = frozenset(
    (*keras_optimizer.UPDATE_METHODS, *keras_optimizer.SCALED_UPDATE_METHODS)
)


def refuse_overrides(optimizer: Optimizer) -> None:
    """Raises NotImplementedError where a method of the update was replaced.

    On the object, by a subclass, or on a class of Keras; not with
    `examples_per_update=None`, where Keras calls them.

    Args:
        optimizer: the SGDPlus, or the `LossScaleOptimizer` around it.
    """
    inner, names = unwrap(optimizer), keras_optimizer.UPDATE_METHODS
    if inner.examples_per_update is None:
        return
    if inner is not optimizer:
        refuse_overrides(inner)
        names = keras_optimizer.SCALED_UPDATE_METHODS
    for name in names:
        if name in vars(optimizer):
            received = "an optimizer object with its own"
        elif not _is_stock(getattr(type(optimizer), name, None)):
            received = "a subclass that overrides"
        else:
            continue
        raise NotImplementedError(
            "The per-example loop computes SGD's own update rule. Received: "
            f"{received} {name!r}, which the loop would ignore. Use "
            "examples_per_update=None with it, for one update per batch."
        )


def refuse_waiting(optimizer: Optimizer) -> None:
    """Raises ValueError where `fit` has to find the learning rate first."""
    if unwrap(optimizer).waits_for_rate:
        raise ValueError(
            'SGDPlus("auto") must find its learning rate in fit, on the data of that '
            "fit. Received: a step outside it (train_on_batch, or a loop by hand). "
            "Call find_learning_rate(model, x, y) before the loop, or give SGDPlus a "
            "number as `learning_rate`."
        )


def refuse_hooks(optimizer: Optimizer) -> None:
    """Raises where a method was put on the object: a test for every batch.

    Args:
        optimizer: the SGDPlus, or the `LossScaleOptimizer` around it.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not (_HOOKS.isdisjoint(vars(optimizer)) and _HOOKS.isdisjoint(vars(inner))):
        refuse_overrides(optimizer)


def _is_stock(method: object) -> bool:
    # By the module that it was written in: wrappers copy the other attributes.
    if method is None:  # of another version of Keras
        return True
    module = getattr(method, "__globals__", {}).get("__name__", "")
    return module.split(".")[0] in _STOCK
