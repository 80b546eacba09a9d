"""The compiled loop changes variables in place, and nobody else's copy of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import Carry, replicas, xla
from tests.support.tiers import tiered_keys

ROWS = 1_000
STEPS: dict[str, Callable[..., Any]] = {
    "fit": lambda model, x, y: model.fit(x, y, batch_size=8, verbose=0),
    "train_step": lambda model, x, y: model.optimizer.train_step(model, (x, y)),
    "train_on_batch": lambda model, x, y: model.train_on_batch(x, y),
}


def _model(rows: int = ROWS, **settings: Any) -> Any:
    embedding = keras.layers.Embedding(rows, 8)
    layers = [embedding, keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
    model.compile(SGDPlus(0.01, **settings), "mse")
    return model


def _data() -> tuple[Any, Any]:
    x = np.random.default_rng(0).integers(0, ROWS, (24, 3)).astype("int32")
    return tf.constant(x), tf.constant((x % 3 - 1.0).mean(1, keepdims=True), tf.float32)


def _fastest(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.matrix
@pytest.mark.parametrize("step", ["train_step", "train_on_batch"])
def test_a_batch_copies_no_table(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with values in and out takes longer: it copies the table twice.

    Addresses of buffers would not show a copy: an allocator reuses a freed buffer.
    """
    seconds = {}
    for in_place in (True, False):
        if not in_place:
            monkeypatch.setattr(replicas, "is_open", lambda: True)
        model = _model(rows=4_000_000)
        x, y = _data()
        STEPS[step](model, x, y)
        seconds[in_place] = _fastest(lambda: STEPS[step](model, x, y))  # noqa: B023
    assert 2 * seconds[True] < seconds[False]


@pytest.mark.parametrize("step", tiered_keys(STEPS, "fit"))
def test_what_others_hold_keeps_its_values(step: str) -> None:
    """A NumPy view or a tensor of a weight, taken between batches, is a snapshot."""
    model = _model()
    x, y = _data()
    STEPS[step](model, x, y)
    table = model.layers[0].embeddings
    view, tensor = table.numpy(), table.value + 0
    held = tf.convert_to_tensor(table.value)
    expected = view.copy()
    STEPS[step](model, x, y)
    assert np.abs(table.numpy() - expected).max() > 0
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(tensor, expected)
    np.testing.assert_array_equal(held, expected)


def test_a_view_taken_inside_fit_keeps_its_values() -> None:
    seen: list[Any] = []
    model = _model()

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            view = model.layers[0].embeddings.numpy()
            seen.append((view, view.copy()))

    x, y = _data()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Keep()])
    assert len(seen) == 3
    for view, value in seen:
        np.testing.assert_array_equal(view, value)
    assert np.abs(seen[0][1] - seen[-1][1]).max() > 0


@pytest.mark.matrix
def test_one_replica_trains_like_none() -> None:
    x, y = _data()
    weights = []
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["/cpu:0"]),
    ):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = _model(order="given")
            model.fit(x.numpy(), y.numpy(), batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for ours, plain in zip(weights[1], weights[0], strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-7)


def test_a_trace_that_starts_over_trains_once() -> None:
    """Only the trace of the short group finds the variable."""
    count = keras.Variable(0.0, trainable=False)

    class CountsOddSizes(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            if x.shape[0] == 2:
                count.assign(count + 1.0)
            return x

    layers = [CountsOddSizes(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(SGDPlus(0.01, examples_per_update=4), "mse")
    model.train_on_batch(tf.ones((6, 3)), tf.ones((6, 1)))
    assert int(model.optimizer.iterations) == 2
    assert float(count) == 1.0


@pytest.mark.parametrize(("group_size", "inside"), [(1, True), (4, True), (5, False)])
def test_who_writes_the_variables(
    group_size: int, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled function writes them, unless one for a short group follows."""
    writers: list[bool] = []
    commit = Carry.commit

    def noted(self: Any, values: dict[int, Any]) -> None:
        if values:
            writers.append(xla.is_tracing())
        commit(self, values)

    monkeypatch.setattr(Carry, "commit", noted)
    model = _model(examples_per_update=group_size)
    model.train_on_batch(*_data())
    assert set(writers) == {inside}


def test_functions_run_eagerly() -> None:
    tf.config.run_functions_eagerly(True)
    try:
        model = _model()
        model.train_on_batch(*_data())
    finally:
        tf.config.run_functions_eagerly(False)
    assert int(model.optimizer.iterations) == 24
