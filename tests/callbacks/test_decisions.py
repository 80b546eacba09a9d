"""Callbacks decide when to stop, which rate and which weights to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.seen import (
    NO_XLA,
    VALIDATION,
    Callback,
    N,
    Seen,
    X,
    Y,
    assert_equal,
    pair_with,
)
from tests.support.twins import (
    BATCH_SIZE,
    assert_engaged,
    assert_same,
    dense_model,
    train_pair,
)


@pytest.mark.matrix
def test_early_stopping_restores_the_best_weights(engagements: list[str]) -> None:
    """It stops in the same epoch as with Keras, and restores the same weights.

    XLA writes weights in place: the copies that the callback keeps must not change.
    """
    seen = Seen()  # of both, ours first
    pair, (ours, _), (theirs, _) = pair_with(
        lambda: [
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
            seen.callback,
        ],
        fit={"epochs": 9},
    )
    assert_same(pair)
    best, stopped = theirs.best_epoch, theirs.stopped_epoch
    assert (ours.best_epoch, ours.stopped_epoch) == (best, stopped)
    assert 0 < best < stopped < 8
    assert_engaged(pair, engagements, (stopped + 1) * N)
    weights = pair.ours.get_weights()
    assert_equal(weights, seen.epochs[best][: len(weights)])
    assert np.abs(weights[0] - seen.epochs[stopped][0]).max() > 1e-3


def _by_epoch() -> Callback:
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 1))


def _on_plateau() -> Callback:
    return keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=0.2)


RATES = {"scheduler": _by_epoch, "plateau": _on_plateau}


@pytest.mark.parametrize("make", RATES.values(), ids=list(RATES))
def test_learning_rate_by_epoch(
    make: Callable[[], Callback], engagements: list[str]
) -> None:
    fit = {"epochs": 5, "validation_data": None}
    pair, *_ = pair_with(lambda: [make()], fit=fit, plus=NO_XLA)
    assert_same(pair)
    assert_engaged(pair, engagements, 5 * N)
    assert pair.our_logs["learning_rate"] == pair.their_logs["learning_rate"]
    assert len(set(pair.our_logs["learning_rate"])) > 2
    assert len(engagements) == 1  # a new rate needs no new trace


@pytest.mark.parametrize(
    ("swap_on_epoch", "plus"),
    [
        pytest.param(False, {}, marks=pytest.mark.matrix),
        pytest.param(True, NO_XLA, marks=pytest.mark.matrix),
    ],
    ids=["for_validation", "on_epoch"],
)
def test_swap_ema_weights(
    swap_on_epoch: bool, plus: dict[str, Any], engagements: list[str]
) -> None:
    """Validation sees the averages, training goes on with the weights themselves."""
    pair, *_ = pair_with(
        lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)],
        sgd={"use_ema": True, "ema_momentum": 0.95},
        fit={"epochs": 3},
        plus=plus,
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 3 * N)
    # In the end `fit` itself writes the averages to the model.
    averaged = pair.ours.evaluate(*VALIDATION, verbose=0)
    assert pair.our_logs["val_loss"][-1] == pytest.approx(averaged, rel=1e-6)


class StopAfter(Callback):
    """Asks `fit` to stop after a batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.last = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.last:
            self.model.stop_training = True


def test_stop_inside_an_epoch(engagements: list[str]) -> None:
    """The batch that runs comes to its end; the next one never begins."""
    pair = train_pair(
        dense_model,
        X,
        Y,
        fit={"epochs": 3},
        our_fit={"callbacks": [StopAfter(1)]},
        their_fit={"callbacks": [StopAfter(2 * BATCH_SIZE - 1)]},
        plus=NO_XLA,
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * BATCH_SIZE)
    assert len(pair.our_logs["loss"]) == 1
    pair.ours.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)  # and nothing is left behind
    assert_engaged(pair, engagements, 2 * BATCH_SIZE + N)


@pytest.mark.parametrize("raise_error", [False, True])
def test_terminate_on_nan(raise_error: bool, engagements: list[str]) -> None:
    """The callback looks at the loss of a batch: the batch with the NaN is the last."""
    x = X.copy()
    x[BATCH_SIZE + 2] = np.nan  # in the second batch of five
    seen = Seen()
    model = dense_model()
    model.compile(SGDPlus(0.02, order="given", **NO_XLA), "mse")
    terminate = keras.callbacks.TerminateOnNaN(raise_error=raise_error)
    arguments: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "epochs": 3,
        "shuffle": False,
        "verbose": 0,
        "callbacks": [seen.callback, terminate],
    }
    if raise_error:
        with pytest.raises(RuntimeError, match="NaN or Inf loss .* at batch 1"):
            model.fit(x, Y, **arguments)
    else:
        with pytest.warns(UserWarning, match="not finite: row 9 of x"):
            history = model.fit(x, Y, **arguments).history
        assert len(history["loss"]) == 1 and np.isnan(history["loss"]).all()
    assert ("train ends" in seen.events) is not raise_error
    assert [np.isnan(logs["loss"]) for logs, _ in seen.batches] == [False, True]
    assert int(model.optimizer.iterations) == 2 * BATCH_SIZE
    assert engagements == [model.name]
