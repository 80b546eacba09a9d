"""Which optimizers take the place of Keras's train step.

Methods of an optimizer that somebody has replaced, which the loop would ignore.

The loop computes the rule by itself and calls none of the methods with which Keras
makes an update. A replaced one would be ignored without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer, Structure


class PerExampleOptimizer:
    """Base of optimizers that can train a model on a batch by themselves.

    The trainer knows an optimizer by this class, so that it need not know `SGDPlus`.
    """

    examples_per_update: Any

    def train_step(self, model: keras.Model, data: Structure) -> Any:
        """Trains a model on one batch; gives the logs."""
        raise NotImplementedError


def unwrap(optimizer: Optimizer) -> Any:
    """The optimizer inside a `LossScaleOptimizer`, else the optimizer itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def is_ours(optimizer: Optimizer) -> bool:
    """Whether it is, or wraps, an optimizer of this package."""
    return isinstance(unwrap(optimizer), PerExampleOptimizer)


def per_example(optimizer: Optimizer) -> Any:
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
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    inner = optimizer.inner_optimizer if is_scaled else optimizer
    if inner.examples_per_update is None:
        return
    names = keras_optimizer.UPDATE_METHODS
    if is_scaled:
        names = keras_optimizer.SCALED_UPDATE_METHODS
        refuse_overrides(inner)
    own = vars(optimizer)
    _refuse([name for name in names if name in own], "an optimizer object with its own")
    kind = type(optimizer)
    replaced = [name for name in names if not _is_stock(getattr(kind, name, None))]
    _refuse(replaced, "a subclass that overrides")


def refuse_hooks(optimizer: Optimizer) -> None:
    """Raises where a method was put on the object: a test for every batch.

    Args:
        optimizer: the SGDPlus, or the `LossScaleOptimizer` around it.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not (_HOOKS.isdisjoint(vars(optimizer)) and _HOOKS.isdisjoint(vars(inner))):
        refuse_overrides(optimizer)


def _refuse(names: Sequence[str], received: str) -> None:
    if names:
        raise NotImplementedError(
            "The per-example loop computes SGD's own update rule. Received: "
            f"{received} {names[0]!r}, which the loop would ignore. Use "
            "examples_per_update=None with it, for one update per batch."
        )


def _is_stock(method: Any) -> bool:
    # By the module that it was written in: wrappers copy the other attributes.
    if method is None:  # of another version of Keras
        return True
    module = getattr(method, "__globals__", {}).get("__name__", "")
    return module.split(".")[0] in _STOCK
