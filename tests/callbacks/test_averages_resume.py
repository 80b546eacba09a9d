"""`ExactResume` with `AverageWeights`: the same bits, in whatever order they stand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import AverageWeights, ExactResume
from tests.support.averaged import (
    EPOCHS,
    NUM_BATCHES,
    Recorder,
    assert_bits,
    assert_close,
    compiled,
    fit,
    loaded,
    oracle,
    trainable,
)
from tests.support.tiers import matrix
from tests.support.twins import Interrupt, Interrupted

NAMES = ("averages", "resume", "checkpoint", "stopping")
ORDERS = list(itertools.permutations(NAMES))
_DEFAULT = NAMES[::-1]


def _callbacks(order: tuple[str, ...], folder: Path) -> list[Any]:
    made = {
        "averages": AverageWeights(),
        "resume": ExactResume(folder / "run", save_freq=2),
        "checkpoint": keras.callbacks.ModelCheckpoint(
            str(folder / "{epoch}.weights.h5"), save_weights_only=True
        ),
        "stopping": keras.callbacks.EarlyStopping(
            patience=9, restore_best_weights=False
        ),
    }
    return [made[name] for name in order]


def _state(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[np.ndarray], dict[str, list[float]], list[Any]]:
    """The final state, the history, and NumPy's averages."""
    seen, model = Recorder(), compiled()
    history = fit(model, AverageWeights(), seen)
    return _state(model), history, oracle(seen.batches)


# Epoch and batch: before any save, in mid-epoch, at the end of one, before the last.
PLACES = [(0, 1), (1, 2), (1, NUM_BATCHES - 1), (2, 3)]


@pytest.mark.parametrize(
    "order", [_DEFAULT, *matrix(*(o for o in ORDERS if o != _DEFAULT))], ids="-".join
)
def test_every_order(
    order: tuple[str, ...], tmp_path: Path, uninterrupted: Any
) -> None:
    expected, whole, averages = uninterrupted
    for place in PLACES if order != _DEFAULT else PLACES[1:2]:
        with pytest.raises(Interrupted):
            fit(compiled(), *_callbacks(order, tmp_path), Interrupt(*place))
    model = compiled()
    history = fit(model, *_callbacks(order, tmp_path))
    assert_bits(_state(model), expected)
    for name, values in whole.items():
        assert history[name] == values[-len(history[name]) :]
    for epoch in range(EPOCHS):
        assert_close(loaded(tmp_path / f"{epoch + 1}.weights.h5"), averages[epoch])


@pytest.mark.matrix
def test_a_save_has_the_weights_of_training(tmp_path: Path) -> None:
    """Also that of an epoch's end, where the model has the averages."""
    seen, model = Recorder(), compiled()
    fit(model, ExactResume(tmp_path), AverageWeights(), seen)
    other = compiled()
    checkpoint = tf.train.Checkpoint(model=other)
    checkpoint.restore(tf.train.latest_checkpoint(str(tmp_path))).expect_partial()
    assert_bits(trainable(other), seen.batches[-1])
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.parametrize("more", matrix(0, 2))
def test_a_finished_run(more: int, tmp_path: Path) -> None:
    """It stays as it is, or goes on with the weights of training for more epochs."""
    seen, whole = Recorder(), compiled()
    fit(whole, AverageWeights(), seen, epochs=EPOCHS + more)
    fit(compiled(), ExactResume(tmp_path), AverageWeights())
    model = compiled()
    fit(model, ExactResume(tmp_path), AverageWeights(), epochs=EPOCHS + more)
    assert_bits(_state(model), _state(whole))
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.matrix
@pytest.mark.parametrize("place", [(0, 3), (1, 3), (2, 1)])
def test_the_mean_from_an_epoch(place: tuple[int, int], tmp_path: Path) -> None:
    """A save may be made before there are averages."""
    whole = compiled()
    fit(whole, AverageWeights(start_epoch=1))
    with pytest.raises(Interrupted):
        resume = ExactResume(tmp_path, save_freq=2)
        fit(compiled(), resume, AverageWeights(start_epoch=1), Interrupt(*place))
    model = compiled()
    fit(model, ExactResume(tmp_path, save_freq=2), AverageWeights(start_epoch=1))
    assert_bits(_state(model), _state(whole))


@pytest.mark.matrix
def test_several_steps_per_execution(tmp_path: Path) -> None:
    def made() -> Any:
        return compiled(steps_per_execution=2)

    whole = made()
    fit(whole, AverageWeights())
    with pytest.raises(Interrupted):
        callbacks = [ExactResume(tmp_path, save_freq=2), AverageWeights()]
        fit(made(), *callbacks, Interrupt(1, 3))
    model = made()
    fit(model, ExactResume(tmp_path, save_freq=2), AverageWeights())
    assert_bits(_state(model), _state(whole))


@pytest.mark.parametrize("saved_with", matrix(True, False))
def test_a_save_of_other_callbacks_is_refused(saved_with: bool, tmp_path: Path) -> None:
    """Training would begin with averages, or the averages with zeros."""
    averaging = [AverageWeights()]
    fit(compiled(), ExactResume(tmp_path), *(averaging if saved_with else []))
    reason = "AverageWeights there" if saved_with else "does not fit"
    with pytest.raises(ValueError, match=reason):
        fit(compiled(), ExactResume(tmp_path), *([] if saved_with else averaging))
