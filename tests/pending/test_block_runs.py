"""Blocks in longer runs: replicas, a run that is taken up, batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus
from tests.support.cases import FLOAT64
from tests.support.oracle import Oracle
from tests.support.replicas import mirrored, shards, visit
from tests.support.twins import Interrupt, Interrupted

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("short_blocks")]

INPUTS, UNITS = 40, 60
NUM_EXAMPLES = 200
RATE = 2.0**-9  # exact in float32, in which Keras keeps it
MOMENTUM = 0.875


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(NUM_EXAMPLES, INPUTS)), rng.normal(size=(NUM_EXAMPLES, 2))


def _model(**settings: Any) -> Any:
    keras.utils.set_random_seed(1)
    keras.config.set_floatx("float64")  # of the data
    keras.config.set_dtype_policy("float64")
    model = keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(UNITS, "tanh"),
            keras.layers.Dense(2),
        ]
    )
    model.compile(SGDPlus(RATE, MOMENTUM, **settings), "mse")
    return model


def _oracle(model: Any) -> Oracle:
    return Oracle(model.get_weights(), learning_rate=RATE, momentum=MOMENTUM)


def _assert_close(model: Any, oracle: Oracle) -> None:
    found = [*model.get_weights(), *(v.numpy() for v in model.optimizer.momentums)]
    for a, b in zip(found, [*oracle.weights, *oracle.velocities], strict=True):
        np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)


def test_replicas(blocks_used: list[int]) -> None:
    """Each walks its part in blocks, of 75 and of 25; then all are averaged."""
    strategy = mirrored(2)
    with strategy.scope():
        model = _model(order="given")
    oracle, data = _oracle(model), _data()
    visit(oracle, shards(strategy, data, 150))
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(150)
    model.fit(dataset, shuffle=False, verbose=0)
    assert blocks_used[-1] == 1
    _assert_close(model, oracle)


@pytest.mark.parametrize("batch_size", [1, 63, 64, 65, 129, 200])
def test_batch_sizes(batch_size: int, blocks_used: list[int]) -> None:
    model = _model(order="given")
    oracle, (x, y) = _oracle(model), _data()
    oracle.visit(x, y, range(NUM_EXAMPLES))
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    assert blocks_used[-1] == 1
    _assert_close(model, oracle)


def _run(directory: Path, *callbacks: Any) -> list[np.ndarray]:
    model = _model(seed=1)
    data = SeededArrays(*_data(), batch_size=90, seed=1)
    resume = [ExactResume(str(directory)), *callbacks]
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=resume)
    return [*model.get_weights(), *(v.numpy() for v in model.optimizer.momentums)]


def test_a_run_that_is_taken_up(tmp_path: Path, blocks_used: list[int]) -> None:
    """It ends with the bits of the run that was not interrupted."""
    with pytest.raises(Interrupted):
        _run(tmp_path / "stopped", Interrupt(1, 0))
    found, whole = _run(tmp_path / "stopped"), _run(tmp_path / "whole")
    assert blocks_used[-1] == 1
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_array_equal(a, b)
