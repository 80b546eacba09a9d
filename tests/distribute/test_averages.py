"""`AverageWeights` under a strategy: all replicas train, and show, the same."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import AverageWeights, ExactResume
from tests.support.averaged import (
    Recorder,
    assert_bits,
    assert_close,
    compiled,
    fit,
    oracle,
    trainable,
)
from tests.support.replicas import mirrored
from tests.support.seen import VALIDATION
from tests.support.tiers import matrix
from tests.support.twins import Interrupt, Interrupted


def _strategy(name: str) -> Any:
    return mirrored(2) if name == "two" else tf.distribute.OneDeviceStrategy("CPU:0")


def _model(strategy: Any) -> Any:
    with strategy.scope():
        return compiled()


@pytest.mark.parametrize("name", matrix("two", "one"))
@pytest.mark.parametrize("inside", [False, True])
def test_averages_of_replicas(name: str, inside: bool) -> None:
    strategy = _strategy(name)
    plain, ours = Recorder(), Recorder()
    fit(_model(strategy), plain, epochs=2)
    model = _model(strategy)
    with strategy.scope() if inside else contextlib.nullcontext():
        history = fit(model, AverageWeights(), ours, epochs=2)
    for a, b in zip(ours.batches, plain.batches, strict=True):
        assert_bits(a, b)
    averages = oracle(plain.batches)
    for a, b in zip(ours.epochs, averages, strict=True):
        assert_close(a, b)
    for variable, average in zip(model.trainable_variables, averages[-1], strict=True):
        copies = strategy.experimental_local_results(variable.value)
        assert len(copies) == (2 if name == "two" else 1)
        for copy in copies:
            np.testing.assert_allclose(copy.numpy(), average, rtol=0, atol=1e-6)
    assert np.abs(averages[-1][0] - plain.batches[-1][0]).max() > 1e-3
    assert history["val_loss"][-1] == pytest.approx(
        model.evaluate(*VALIDATION, verbose=0), rel=1e-6
    )


@pytest.mark.matrix
def test_resumed(tmp_path: Path) -> None:
    strategy = _strategy("two")
    whole = _model(strategy)
    fit(whole, AverageWeights())
    with pytest.raises(Interrupted):
        resume = ExactResume(tmp_path, save_freq=2)
        fit(_model(strategy), resume, AverageWeights(), Interrupt(1, 2))
    model = _model(strategy)
    fit(model, ExactResume(tmp_path, save_freq=2), AverageWeights())
    assert_bits(trainable(model), trainable(whole))
