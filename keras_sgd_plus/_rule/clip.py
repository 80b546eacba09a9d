"""Clipping of gradients, by the one option of three that is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule.gradient import Gradient
from keras_sgd_plus._rule.part import Part, Update

ops: Any = keras.ops  # its annotations name tensors of every backend


@dataclass(frozen=True)
class Clip(Part):
    """Clips each gradient's norm, its entries, or the norm of all gradients together.

    Zero means off, as in Keras.
    """

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None

    settings = ("clipnorm", "clipvalue", "global_clipnorm")

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Sequence[Any]) -> Clip | None:
        del weights
        limits = [getattr(optimizer, name) for name in cls.settings]
        found = [limit if limit and limit > 0 else None for limit in limits]
        return cls(*found) if any(limit is not None for limit in found) else None

    def __call__(self, update: Update) -> Update:
        gradients = update.gradients
        if self.clipnorm is not None:
            limit = self.clipnorm
            clipped = {i: g.clipped_by_norm(limit) for i, g in gradients.items()}
        elif self.global_clipnorm is not None:
            clipped = _together(gradients, self.global_clipnorm)
        else:
            low, high = -(self.clipvalue or 0.0), self.clipvalue
            clipped = {
                i: g.entrywise(lambda v: ops.clip(v, low, high))
                for i, g in gradients.items()
            }
        return replace(update, gradients=clipped)

    def needs_all_of(self, index: int) -> str | None:
        del index
        return None


def _together(gradients: dict[int, Gradient], limit: float) -> dict[int, Gradient]:
    squares = [g.squared_norm() for g in gradients.values()]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    # The added zero turns NaN where the norm is not finite, as in Keras.
    scale = limit * ops.minimum(1.0 / norm, 1.0 / limit) + (norm - norm)
    return {i: g.scaled(lambda v: v * scale) for i, g in gradients.items()}
