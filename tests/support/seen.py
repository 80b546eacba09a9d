"""Tests of callbacks share this data, a callback that notes all, and pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tests.support.twins import Pair, dense_data, dense_model, train_pair

N = 30
X, Y = dense_data(N)
VALIDATION = dense_data(9, seed=8)  # another function of x, so its loss soon rises
ENDS = (7, 14, 21, 28, 30)  # examples seen at the end of each of our batches
NO_XLA = {"jit_compile": False}  # for callbacks that keep no weight
Callback = keras.callbacks.Callback


class Seen:
    """All calls of a `LambdaCallback`, with copies of the state at that moment."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.batches: list[tuple[dict[str, float], list[np.ndarray]]] = []
        self.epochs: list[list[np.ndarray]] = []
        self.callback: Any = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self.events.append("train begins"),
            on_train_end=lambda logs: self.events.append("train ends"),
            on_epoch_begin=lambda epoch, logs: self.events.append(f"epoch {epoch}"),
            on_epoch_end=self._end_epoch,
            on_train_batch_begin=lambda batch, logs: self.events.append(f"{batch}"),
            on_train_batch_end=self._end_batch,
        )

    def _end_epoch(self, epoch: int, logs: Any) -> None:
        self.events.append(f"epoch {epoch} ends")
        self.epochs.append(state_of(self.callback.model))

    def _end_batch(self, batch: int, logs: Any) -> None:
        self.events.append(f"{batch} ends")
        self.batches.append((dict(logs), state_of(self.callback.model)))


def state_of(model: Any) -> list[np.ndarray]:
    """Copies of the weights, then of the optimizer's variables."""
    variables = (*model.trainable_variables, *model.optimizer.variables)
    return [np.array(v.numpy()) for v in variables]


def pair_with(
    make: Callable[[], list[Callback]], **kwargs: Any
) -> tuple[Pair, list[Any], list[Any]]:
    """A pair trained with validation, and the callbacks of ours and of theirs."""
    made: list[list[Any]] = []
    fit = {"validation_data": VALIDATION, **kwargs.pop("fit", {})}

    def fit_with_callbacks() -> dict[str, Any]:
        made.append(make())
        return {**fit, "callbacks": made[-1]}

    pair = train_pair(dense_model, X, Y, fit=fit_with_callbacks, **kwargs)
    ours, theirs = made
    return pair, ours, theirs


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
