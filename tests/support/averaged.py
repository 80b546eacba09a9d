"""Runs of `fit` with `AverageWeights`, and NumPy's averages of the same training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import SGDPlus
from tests.support.seen import VALIDATION, X, Y
from tests.support.twins import BATCH_SIZE, dense_model

EPOCHS, NUM_BATCHES = 3, 5  # of an epoch
Weights = list[np.ndarray]


class Recorder(keras.callbacks.Callback):
    """Copies of the trainable weights at the end of each batch and of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Weights] = []
        self.epochs: list[Weights] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(trainable(self.model))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(trainable(self.model))


def trainable(model: Any) -> Weights:
    return [np.array(v.numpy()) for v in model.trainable_variables]


def loaded(path: Path) -> Weights:
    """The trainable weights in a `.weights.h5` file of `compiled()`."""
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return trainable(model)


def compiled(model: Any = None, optimizer: Any = None, **compile: Any) -> Any:
    """A model, the same at each call, with an optimizer that needs no XLA."""
    keras.utils.set_random_seed(3)
    model = dense_model() if model is None else model()
    if optimizer is None:
        optimizer = SGDPlus(0.02, momentum=0.9, order="given", jit_compile=False)
    model.compile(optimizer, "mse", **compile)
    return model


def fit(model: Any, *callbacks: Any, **kwargs: Any) -> dict[str, list[float]]:
    """Epochs of 5 batches; returns the history."""
    arguments = {"x": X, "y": Y, "batch_size": BATCH_SIZE, "epochs": EPOCHS, **kwargs}
    arguments = {"validation_data": VALIDATION, **arguments}
    history = model.fit(
        shuffle=False, verbose=0, callbacks=list(callbacks), **arguments
    )
    return history.history


def oracle(
    batches: Sequence[Weights],
    start_epoch: int | None = None,
    num_batches: int = NUM_BATCHES,
) -> list[Weights]:
    """The averages at the end of each epoch, in float64; weights where there are none.

    Args:
        batches: weights at the end of each batch.
        start_epoch: as for `AverageWeights`.
        num_batches: of an epoch.
    """
    first = (start_epoch or 0) * num_batches
    found = []
    for end in range(num_batches, len(batches) + 1, num_batches):
        seen = [[w.astype("float64") for w in each] for each in batches[first:end]]
        if not seen:
            found.append(batches[end - 1])
        elif start_epoch is None:
            found.append(_polynomial(seen))
        else:
            found.append([np.mean(each, axis=0) for each in zip(*seen, strict=True)])
    return found


def _polynomial(seen: list[Weights]) -> Weights:
    # The weight of w_t in the average is proportional to t (t + 1) ... (t + d - 1), the
    # closed form of the recursion, with d = 8.
    shares = np.array([np.prod(t + np.arange(8.0)) for t in range(1, len(seen) + 1)])
    shares /= shares.sum()
    columns = zip(*seen, strict=True)
    return [np.tensordot(shares, np.stack(column), 1) for column in columns]


def assert_close(ours: Weights, theirs: Weights, rtol: float = 1e-6) -> None:
    """Equal up to so much of the largest entry of each array."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def assert_bits(ours: Weights, theirs: Weights) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
