"""Which optimizers take the place of Keras's train step."""

from __future__ import annotations

from typing import Any

import keras

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
