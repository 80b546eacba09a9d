"""Clipping of gradients, by the one option of three that is set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Optimizer, Tensor
from keras_sgd_plus._rule.gradient import Gradient
from keras_sgd_plus._rule.numbers import Number, Numbers
from keras_sgd_plus._rule.part import Part, Update

ops: Any = keras.ops  # its annotations name tensors of every backend


@dataclass(frozen=True)
class Clip(Part):
    """Clips each gradient's norm, its entries, or the norm of all gradients together.

    Zero means off, as in Keras.
    """

    kind: str  # the name of the argument that is set

    numbers = (
        Number("clipnorm", "clipnorm"),
        Number("clipvalue", "clipvalue"),
        Number("global_clipnorm", "global_clipnorm"),
        Number("1 / global_clipnorm", "global_clipnorm", lambda limit: 1.0 / limit),
    )

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Clip | None:
        del weights
        for kind in ("clipnorm", "global_clipnorm", "clipvalue"):  # as Keras prefers
            limit = getattr(optimizer, kind)
            if limit and limit > 0:
                return cls(kind)
        return None

    def __call__(self, update: Update) -> Update:
        gradients, limit = update.gradients, update.numbers[self.kind]
        if self.kind == "clipnorm":
            clipped = {i: g.clipped_by_norm(limit) for i, g in gradients.items()}
        elif self.kind == "global_clipnorm":
            clipped = _together(gradients, update.numbers)
        else:
            clipped = {i: g.entrywise(_within(limit)) for i, g in gradients.items()}
        return replace(update, gradients=clipped, unclipped=gradients)

    @property
    def keeps_factors(self) -> bool:
        return self.kind != "clipvalue"  # which looks at each entry

    def needs_all_of(self, index: int) -> str | None:
        del index
        return None


def _within(limit: Tensor) -> Callable[[Tensor], Tensor]:
    def clip(value: Tensor) -> Tensor:
        high = tf.cast(limit, value.dtype)
        return ops.clip(value, -high, high)

    return clip


def _together(gradients: dict[int, Gradient], numbers: Numbers) -> dict[int, Gradient]:
    squares = [g.squared_norm() for g in gradients.values()]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    limit, inverse = (
        tf.cast(numbers[name], norm.dtype)
        for name in ("global_clipnorm", "1 / global_clipnorm")
    )
    # The added zero turns NaN where the norm is not finite, as in Keras.
    scale = limit * ops.minimum(1.0 / norm, inverse) + (norm - norm)
    return {i: g.scaled(lambda v: v * scale) for i, g in gradients.items()}
