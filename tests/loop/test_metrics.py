"""The loop logs losses and metrics, with weights and masks, as Keras does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, losses, metrics, ops

from keras_sgd_plus import SGDPlus
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)

N = 20
CROSSENTROPY = "sparse_categorical_crossentropy"
TWO_EPOCHS = {"epochs": 2}  # the second starts from metrics that were reset


def _classifier() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])


def _classes() -> tuple[np.ndarray, np.ndarray]:
    x, y = dense_data(N, outputs=3)
    return x, y.argmax(1).astype("int32")


@keras.saving.register_keras_serializable("tests")
class Peak(metrics.Metric):
    """The largest error so far: its state and its result are scalars."""

    def __init__(self, name: str = "peak", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.peak = self.add_variable((), "zeros", name="peak")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        error = ops.abs(ops.cast(y, y_pred.dtype) - y_pred)
        if sample_weight is not None:
            error = error * ops.reshape(ops.cast(sample_weight, error.dtype), (-1, 1))
        self.peak.assign(ops.maximum(self.peak, ops.max(error)))

    def result(self) -> Any:
        return self.peak + 0.0


def plain_gap(y: Any, y_pred: Any) -> Any:
    """A metric written as a function."""
    return ops.mean(ops.abs(ops.cast(y, y_pred.dtype) - y_pred), axis=-1)


@pytest.mark.matrix
def test_class_metrics(engagements: list[str]) -> None:
    def compile() -> dict[str, Any]:
        return {
            "loss": CROSSENTROPY,
            "metrics": [
                "accuracy",
                metrics.SparseTopKCategoricalAccuracy(2, name="top2"),
                metrics.MeanIoU(3, sparse_y_pred=False, name="iou"),
            ],
        }

    pair = train_pair(_classifier, *_classes(), compile=compile, fit=TWO_EPOCHS)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    assert pair.our_logs.keys() >= {"loss", "accuracy", "top2", "iou"}


@pytest.mark.matrix
def test_binary_metrics(engagements: list[str]) -> None:
    """States of several shapes (AUC holds 200 thresholds), a scalar, a function."""

    def compile() -> dict[str, Any]:
        return {
            "loss": "binary_crossentropy",
            "metrics": [
                metrics.AUC(name="auc"),
                metrics.Precision(thresholds=[0.3, 0.6], name="precision"),
                metrics.F1Score(threshold=0.5, name="f1"),
                Peak(),
                plain_gap,
            ],
        }

    def make() -> keras.Model:
        return keras.Sequential(
            [keras.Input((5,)), layers.Dense(1, activation="sigmoid")]
        )

    x, y = dense_data(N, outputs=1)
    pair = train_pair(
        make, x, (y > 0).astype("float32"), compile=compile, fit=TWO_EPOCHS
    )
    for logs in (pair.our_logs, pair.their_logs):
        logs["precision"] = np.ravel(logs["precision"]).tolist()
        logs["f1"] = np.ravel(logs["f1"]).tolist()
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    assert len(pair.our_logs) == 6


_some = np.random.default_rng(0).uniform(0.2, 3.0, N).astype("float32")
WEIGHTS: dict[str, dict[str, Any]] = {
    "sample_weight": {"sample_weight": _some},
    "zero_weights": {"sample_weight": np.where(np.arange(N) % 3, 0.0, _some)},
    "class_weight": {"class_weight": {0: 0.5, 1: 2.0, 2: 3.5}},
}


@pytest.mark.parametrize("weights", tiered_rows(WEIGHTS, "sample_weight"))
def test_weights(weights: dict[str, Any], engagements: list[str]) -> None:
    def compile() -> dict[str, Any]:
        return {
            "loss": CROSSENTROPY,
            "metrics": ["accuracy"],
            "weighted_metrics": ["accuracy", plain_loss],
        }

    pair = train_pair(_classifier, *_classes(), compile=compile, fit=weights)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    assert pair.our_logs["accuracy"] != pair.our_logs["weighted_accuracy"]


def plain_loss(y: Any, y_pred: Any) -> Any:
    """A loss written as a function."""
    return losses.sparse_categorical_crossentropy(y, y_pred)


LOSSES: dict[str, Any] = {
    "function": lambda: plain_loss,
    "list": lambda: [CROSSENTROPY],
    "dict": lambda: {"head": CROSSENTROPY},
    "sum": lambda: losses.SparseCategoricalCrossentropy(reduction="sum"),
}


@pytest.mark.parametrize("make_loss", tiered_rows(LOSSES, "dict"))
def test_loss(make_loss: Any, engagements: list[str]) -> None:
    def make() -> keras.Model:
        x = keras.Input((5,))
        return keras.Model(x, layers.Dense(3, activation="softmax", name="head")(x))

    pair = train_pair(
        make,
        *_classes(),
        compile=lambda: {"loss": make_loss()},
        fit=WEIGHTS["zero_weights"],
    )
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class AddsLosses(layers.Layer):
    """An identity that adds a loss and updates a metric."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = metrics.Mean(name="size")

    def call(self, x: Any) -> Any:
        self.add_loss(0.3 * ops.mean(ops.square(x)))
        self.size.update_state(ops.abs(x))
        return x


@pytest.mark.matrix
def test_added_losses_and_regularizers(engagements: list[str]) -> None:
    def make() -> keras.Model:
        l2 = keras.regularizers.L2(0.2)
        hidden = layers.Dense(4, kernel_regularizer=l2, activity_regularizer=l2)
        return keras.Sequential(
            [keras.Input((5,)), hidden, AddsLosses(), layers.Dense(2)]
        )

    x, y = dense_data(N)
    compile = {"metrics": ["mse"]}
    pair = train_pair(make, x, y, compile=compile, fit=TWO_EPOCHS)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    assert "size" in pair.our_logs  # the layer's own metric
    # The loss has the three in it; without them it would equal the metric.
    assert pair.our_logs["loss"][0] > 1.05 * pair.our_logs["mse"][0]


@pytest.mark.matrix
def test_mask_of_a_sequence(engagements: list[str]) -> None:
    """Padded steps do not count; each step has a weight of its own."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, (N, 6))
    x[np.arange(6) >= rng.integers(2, 7, N)[:, None]] = 0
    y = ((x * 7 + 1) % 3).astype("int32")
    fit = {"sample_weight": rng.uniform(0.2, 2.0, (N, 6)).astype("float32")}
    compile = {
        "loss": CROSSENTROPY,
        "metrics": ["accuracy"],
        "weighted_metrics": ["accuracy"],
    }

    def make(mask: bool = True) -> keras.Model:
        tokens = keras.Input((6,), dtype="int32")
        rows = layers.Embedding(6, 4, mask_zero=mask)(tokens)
        hidden = layers.SimpleRNN(4, return_sequences=True)(rows)
        return keras.Model(tokens, layers.Dense(3, activation="softmax")(hidden))

    pair = train_pair(make, x, y, compile=compile, fit=fit)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    # A lost mask would give the logs of a model without one.
    keras.utils.set_random_seed(1)
    maskless = make(mask=False)
    maskless.compile(SGDPlus(0.02, 0.9, order="given", jit_compile=False), **compile)
    logs = maskless.fit(x, y, batch_size=N, shuffle=False, verbose=0, **fit).history
    for name, value in pair.our_logs.items():
        assert abs(logs[name][0] - value[0]) > 1e-3, name


def test_logged_loss_is_progressive() -> None:
    """The loss of an example comes before its own update, after all earlier ones."""
    x, y = dense_data(N)
    model = dense_model()
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    model.compile(SGDPlus(0.1, order="given"), "mse", metrics=["mae"])
    logs = model.fit(x, y, batch_size=N, shuffle=False, verbose=0).history
    twin.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    before, after = [], []
    for i in range(N):
        before.append(twin.evaluate(x[[i]], y[[i]], verbose=0))
        twin.train_on_batch(x[[i]], y[[i]])
        after.append(twin.evaluate(x[[i]], y[[i]], verbose=0))
    logged = [logs["loss"][0], logs["mae"][0]]
    np.testing.assert_allclose(logged, np.mean(before, 0), rtol=2e-5)
    assert np.mean(after, 0)[0] < 0.95 * logged[0]
