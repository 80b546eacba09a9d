"""`fit`, `train_on_batch` and `evaluate` take their arguments as with Keras's SGD."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.stories import Run, run_pair
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    snapshot,
    train_pair,
)

N = 20


def _schedule() -> dict[str, Any]:
    decay = keras.optimizers.schedules.ExponentialDecay(0.05, 4, 0.7)
    return {"learning_rate": decay}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "steps_per_execution": {"our_compile": {"steps_per_execution": 3}},
    "validation_data": {"fit": {"validation_data": dense_data(9, seed=8)}},
    "validation_split": {"fit": {"validation_split": 0.3, "epochs": 2}},
    "initial_epoch": {"fit": {"initial_epoch": 2, "epochs": 4}},
    "schedule": {"sgd": _schedule, "fit": {"epochs": 2}},
    "callable_learning_rate": {"sgd": {"learning_rate": lambda: 0.03}},
    "run_eagerly": {"our_compile": {"run_eagerly": True}},
    "loop_without_xla": {"plus": {"jit_compile": False}},
    "loop_must_xla": {"plus": {"jit_compile": True}},
    "model_with_xla": {"our_compile": {"jit_compile": True}},
    "model_without_xla": {"our_compile": {"jit_compile": False}},
    "model_with_xla_steps": {
        "our_compile": {"jit_compile": True, "steps_per_execution": 3}
    },
}


@pytest.mark.matrix
@pytest.mark.parametrize("arguments", tiered_rows(ARGUMENTS))
def test_argument(arguments: dict[str, Any], engagements: list[str]) -> None:
    x, y = dense_data(N)
    pair = train_pair(dense_model, x, y, compile={"metrics": ["mae"]}, **arguments)
    assert_same(pair)
    epochs = len(pair.their_logs["loss"])
    rows = 14 if "validation_split" in arguments.get("fit", {}) else N
    assert_engaged(pair, engagements, rows * epochs)


@pytest.mark.matrix
def test_validation_is_logged(engagements: list[str]) -> None:
    x, y = dense_data(N)
    fit = {"validation_data": dense_data(9, seed=8), "validation_freq": 2, "epochs": 4}
    pair = train_pair(dense_model, x, y, fit=fit)
    assert_same(pair)
    assert_engaged(pair, engagements, 4 * N)
    assert len(pair.our_logs["val_loss"]) == 2


def test_train_on_batch(engagements: list[str]) -> None:
    """It returns the mean over the examples of what Keras returns for each."""
    x, y = dense_data(N)
    weights = np.linspace(0.5, 2.0, N).astype("float32")

    def story(run: Run) -> None:
        run.compile(metrics=["mae"], weighted_metrics=["mse"])
        for start, stop in ((0, 7), (7, 12), (12, 13), (13, N)):
            size = stop - start if run.is_ours else 1
            for i in range(start, stop, size):
                rows = slice(i, i + size)
                run.model.reset_metrics()  # Keras does it since 3.15
                logs = run.model.train_on_batch(
                    x[rows], y[rows], sample_weight=weights[rows], return_dict=True
                )
                for name in ("loss", "mae"):  # means over examples
                    values = run.logs.setdefault(name, [])
                    values.extend([float(logs[name])] * size)
        for name, values in run.logs.items():
            batches = np.split(np.array(values), [7, 12, 13])
            run.logs[name] = [float(np.mean(batch)) for batch in batches]

    pair = run_pair(dense_model, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    flat = pair.ours.train_on_batch(x[:3], y[:3])
    assert len(flat) == 3 and np.isfinite(flat).all()


def test_class_weight_on_batch(engagements: list[str]) -> None:
    x, y = dense_data(N, outputs=3)
    labels, weight = y.argmax(1), {0: 0.3, 1: 1.0, 2: 4.0}

    def make() -> keras.Model:
        return keras.Sequential(
            [keras.Input((5,)), layers.Dense(3, activation="softmax")]
        )

    def story(run: Run) -> None:
        run.compile(loss="sparse_categorical_crossentropy")
        size = N if run.is_ours else 1
        losses = []
        for i in range(0, N, size):
            rows = slice(i, i + size)
            run.model.reset_metrics()  # Keras does it since 3.15
            losses.append(
                run.model.train_on_batch(x[rows], labels[rows], class_weight=weight)
            )
        run.logs["loss"] = [float(np.mean(losses))]

    pair = run_pair(make, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def test_evaluation_and_prediction_are_keras_own(engagements: list[str]) -> None:
    x, y = dense_data(N)
    model = dense_model()
    model.compile(SGDPlus(0.05), "mse", metrics=["mae"])
    model.fit(x, y, batch_size=N, verbose=0)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile("sgd", "mse", metrics=["mae"])
    traces, state = len(engagements), snapshot(model)
    for call in (
        lambda m: m.evaluate(x, y, batch_size=7, verbose=0),
        lambda m: m.test_on_batch(x, y),
        lambda m: m.predict(x, batch_size=7, verbose=0),
        lambda m: m.predict_on_batch(x),
    ):
        np.testing.assert_array_equal(call(model), call(twin))
    assert len(engagements) == traces
    for kind, arrays in snapshot(model).items():
        for a, b in zip(arrays, state[kind], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=kind)


class HalvesRate(keras.callbacks.Callback):
    """Sets the learning rate every so many batches."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % self.every == 0:
            optimizer = self.model.optimizer
            optimizer.learning_rate = float(optimizer.learning_rate) * 0.5


@pytest.mark.matrix
def test_learning_rate_set_between_batches(engagements: list[str]) -> None:
    x, y = dense_data(21)
    ours, theirs = HalvesRate(1), HalvesRate(7)
    pair = train_pair(
        dense_model,
        x,
        y,
        fit={"epochs": 1},
        our_fit={"callbacks": [ours]},
        their_fit={"callbacks": [theirs]},
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 21)
    np.testing.assert_allclose(float(pair.ours.optimizer.learning_rate), 0.02 / 8)
    traces = len(engagements)
    pair.ours.fit(x, y, batch_size=7, epochs=2, callbacks=[ours], verbose=0)
    assert len(engagements) == traces  # and no new trace for a new rate
