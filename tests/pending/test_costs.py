"""A batch copies no table, and takes no time that grows with the table."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support import hlo
from tests.support.tables import (
    LENGTH,
    ids,
    labels,
)


@pytest.mark.parametrize("rows", [2_000, 100_000])
@pytest.mark.matrix
def test_no_table_is_copied(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA copies it neither in the loop nor before or after it."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(rows, 32),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(0.05, momentum=0.9), loss)
    text = hlo.optimized(monkeypatch, model, ids(64), labels(64))
    assert f"f32[{rows},32]" in text
    assert not hlo.copies([text], rows)


@pytest.mark.matrix
def test_time_does_not_grow_with_the_table() -> None:
    """Moving whole tables would take over 50 times as long on the larger one."""
    seconds = {}
    for rows in (2_000, 200_000):
        keras.utils.set_random_seed(1)
        stack = [layers.Embedding(rows, 8), layers.Flatten(), layers.Dense(1)]
        model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])
        model.compile(SGDPlus(0.01, momentum=0.9), "mse")
        batch = tf.constant(ids(512)), tf.ones((512, 1))
        model.optimizer.train_step(model, batch)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            np.asarray(model.optimizer.train_step(model, batch)["loss"])
            times.append(time.perf_counter() - start)
        seconds[rows] = min(times)
    assert seconds[200_000] < 12 * seconds[2_000]
