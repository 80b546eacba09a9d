"""A `fit` with `AverageWeights` that breaks off leaves the weights of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import AverageWeights
from tests.support.averaged import (
    NUM_BATCHES,
    Recorder,
    assert_bits,
    assert_close,
    compiled,
    fit,
    oracle,
    trainable,
)
from tests.support.messages import normalises
from tests.support.seen import VALIDATION, X, Y
from tests.support.tiers import matrix, tiered_keys


def _raise(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


def _in_second_epoch(batch: int) -> Any:
    seen: list[int] = []

    def hook(number: int, logs: Any = None) -> None:
        seen.append(number)
        if len(seen) == NUM_BATCHES + batch:
            _raise()

    return hook


# Where `fit` breaks off -> the hook, and how many batches it has trained on.
PLACES: dict[str, tuple[str, Any, int]] = {
    "in_mid_epoch": ("on_train_batch_end", _in_second_epoch(2), NUM_BATCHES + 2),
    "in_validation": ("on_test_batch_end", _raise, NUM_BATCHES),
    "before_validation": ("on_test_begin", _raise, NUM_BATCHES),
    "after_validation": ("on_test_end", _raise, NUM_BATCHES),
    "at_the_end_of_an_epoch": ("on_epoch_end", _raise, NUM_BATCHES),
}


def _normalised() -> Any:
    hidden = [keras.layers.Reshape((5, 1)), keras.layers.BatchNormalization()]
    last = [keras.layers.Flatten(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((5,)), *hidden, *last])


@normalises
@pytest.mark.parametrize("error", [KeyboardInterrupt, *matrix(ValueError)])
@pytest.mark.parametrize("kind", [*matrix("plain"), "normalised"])
@pytest.mark.parametrize("place", tiered_keys(PLACES, "in_mid_epoch"))
def test_weights_and_statistics_are_those_of_training(
    place: str, kind: str, error: type[BaseException]
) -> None:
    name, hook, num_batches = PLACES[place]
    if place == "in_mid_epoch":
        hook = _in_second_epoch(2)

    def stop(*arguments: Any, **named: Any) -> None:
        try:
            hook(*arguments, **named)
        except KeyboardInterrupt:
            raise error from None

    make = (_normalised,) if kind == "normalised" else ()
    plain, model, seen = compiled(*make), compiled(*make), Recorder()
    fit(plain, seen)
    averages = AverageWeights()
    halt = keras.callbacks.LambdaCallback(**{name: stop})
    with pytest.raises(error):
        fit(model, averages, halt, validation_data=VALIDATION)
    assert_bits(trainable(model), seen.batches[num_batches - 1])
    # Nobody puts averages into the model any more, which then trains on.
    before = [v.numpy() for v in model.variables]
    model.evaluate(X, Y, verbose=0, callbacks=[averages])
    model.predict(X, verbose=0, callbacks=[averages])
    assert_bits([v.numpy() for v in model.variables], before)
    again = Recorder()
    fit(model, averages, again)
    assert_close(trainable(model), oracle(again.batches)[-1])


@pytest.mark.matrix
def test_backup_and_restore_goes_on_from_the_averages(tmp_path: Path) -> None:
    """As the docstring says: it saves at the end of an epoch what the model holds."""
    seen = Recorder()
    fit(compiled(), seen)
    averages = oracle(seen.batches[:NUM_BATCHES])[-1]

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    halt = keras.callbacks.LambdaCallback(on_train_batch_end=_in_second_epoch(1))
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), AverageWeights(), backup(), halt)
    model, begun = compiled(), []

    def note(batch: int, logs: Any) -> None:
        if not begun:
            begun.extend(np.array(w) for w in trainable(model))

    look = keras.callbacks.LambdaCallback(on_train_batch_begin=note)
    again = Recorder()
    fit(model, AverageWeights(), backup(), look, again)
    assert_close(begun, averages)
    assert_close(trainable(model), oracle(again.batches)[-1])
