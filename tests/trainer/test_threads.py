"""Models train in threads at once, and one trains while another is traced."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.messages import normalises
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    BATCH_SIZE,
    dense_data,
    dense_model,
    linear_model,
)

pytestmark = normalises

X, Y = dense_data(28)


def _with_random_layers() -> Any:
    norm, drop = layers.BatchNormalization(), layers.Dropout(0.3)
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), norm, drop, layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2)])


def _by_fit(model: Any) -> None:
    model.fit(X, Y, batch_size=BATCH_SIZE, epochs=15, shuffle=False, verbose=0)


def _by_batches(model: Any) -> None:
    for i in range(60):
        model.train_on_batch(X[i % 4 :], Y[i % 4 :])


def _by_hand(model: Any) -> None:
    for i in range(60):
        model.optimizer.train_step(model, (X[i % 4 :], Y[i % 4 :]))


@pytest.mark.matrix
def test_models_in_threads(engagements: list[str]) -> None:
    """Models that train at once end where each ends alone, to the last bit."""
    jobs = [
        (linear_model, _by_fit),
        (dense_model, _by_batches),
        (_with_random_layers, _by_hand),
    ]
    models = []
    for i, (make, _) in enumerate(jobs):
        model = make()
        model.compile(SGDPlus(0.001 * (i + 1), 0.9, seed=i), "mse")
        model.optimizer.build(model.trainable_variables)
        models.append(model)
    variables = [[*m.variables, *m.optimizer.variables] for m in models]
    start = [[v.numpy().copy() for v in vs] for vs in variables]

    def run(i: int) -> list[np.ndarray]:
        jobs[i][1](models[i])
        return [v.numpy().copy() for v in variables[i]]

    alone = [run(i) for i in range(len(jobs))]
    traces = len(engagements)
    assert set(engagements) == {model.name for model in models}
    for vs, values in zip(variables, start, strict=True):
        for variable, value in zip(vs, values, strict=True):
            variable.assign(value)
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(run, range(len(jobs))))
    assert len(engagements) == traces
    for a, b, first in zip(alone, together, start, strict=True):
        for v, w in zip(a, b, strict=True):
            np.testing.assert_array_equal(v, w)
        assert not np.array_equal(a[0], first[0])


class Meanwhile(layers.Layer):
    """Lets another thread do a job whenever it is called, so while it is traced."""

    def __init__(self, job: Callable[[], None]) -> None:
        super().__init__()
        self.job, self.num_calls = job, 0

    def call(self, x: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self.job).result()
        self.num_calls += 1
        return x


class Counted(layers.Dense):
    """Counts how often Python calls it: once per trace if not run eagerly."""

    num_calls = 0

    def call(self, x: Any) -> Any:
        self.num_calls += 1
        return super().call(x)


OTHERS = {
    "sgd_plus": lambda: SGDPlus(0.01, seed=1),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.parametrize("make", tiered_rows(OTHERS, "sgd_plus"))
def test_a_thread_trains_while_another_traces(
    make: Callable[[], Any], engagements: list[str]
) -> None:
    """Tracing a loop in one thread changes nothing in the others."""

    def fit(model: Any) -> None:
        model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)

    other = keras.Sequential([keras.Input((5,)), Counted(2)])
    other.compile(make(), "mse")
    fit(other)
    counted = other.layers[0]
    num_calls, traces = counted.num_calls, engagements.count(other.name)
    meanwhile = Meanwhile(lambda: fit(other))
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2), meanwhile])
    model.compile(SGDPlus(0.01), "mse")
    fit(model)
    assert meanwhile.num_calls >= 2  # when built, and when the loop was traced
    assert counted.num_calls == num_calls  # and so not traced again, nor run eagerly
    assert engagements.count(other.name) == traces
    assert engagements.count(model.name) == 1
    assert not tf.config.functions_run_eagerly()
