"""Loss, metrics and state during the walk: what Keras logs at `batch_size=1`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, losses, metrics, ops

from keras_sgd_plus import SGDPlus
from tests.twins import (
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


# --- Compiled metrics. ---


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


# --- Weights. ---

_some = np.random.default_rng(0).uniform(0.2, 3.0, N).astype("float32")
WEIGHTS: dict[str, dict[str, Any]] = {
    "sample_weight": {"sample_weight": _some},
    "zero_weights": {"sample_weight": np.where(np.arange(N) % 3, 0.0, _some)},
    "class_weight": {"class_weight": {0: 0.5, 1: 2.0, 2: 3.5}},
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=list(WEIGHTS))
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


# --- Losses. ---

LOSSES: dict[str, Any] = {
    "function": lambda: plain_loss,
    "list": lambda: [CROSSENTROPY],
    "dict": lambda: {"head": CROSSENTROPY},
    "sum": lambda: losses.SparseCategoricalCrossentropy(reduction="sum"),
}


@pytest.mark.parametrize("make_loss", LOSSES.values(), ids=list(LOSSES))
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
    """Identity that adds a loss with, and a metric without gradient."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = metrics.Mean(name="size")

    def call(self, x: Any) -> Any:
        self.add_loss(0.3 * ops.mean(ops.square(x)))
        self.size.update_state(ops.abs(x))
        return x


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
    # The three are in the loss; without them it would be the metric.
    assert pair.our_logs["loss"][0] > 1.05 * pair.our_logs["mse"][0]


# --- Overridden methods of the model. ---


class OwnLoss(keras.Model):
    """Computes its loss, and updates a metric while at it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gap = metrics.Mean(name="gap")

    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: Any = 1
    ) -> Any:
        del training
        loss = ops.mean(ops.square(y - y_pred)) + 0.1 * ops.mean(ops.square(x[:, :1]))
        self.gap.update_state(ops.abs(y - y_pred), sample_weight)
        return loss


class OldStyleLoss(OwnLoss):
    """As written before `training` was an argument."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight)


class ExtraLogs(keras.Model):
    """Returns more than the metrics: a metric of its own, and plain tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worst = Peak(name="worst")

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        self.worst.update_state(y, y_pred)
        worst = self.worst.result()
        return {**logs, "worst": worst, "last": ops.sum(y_pred), "one": 1.0}


class OwnMetrics(keras.Model):
    """Lists its metrics itself, so that Keras's own loss tracker is not among them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gap = metrics.Mean(name="gap")

    @property
    def metrics(self) -> list[Any]:
        return [self.gap]

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        self.gap.update_state(ops.abs(y - y_pred))
        return self.get_metrics_result()


OVERRIDES = {c.__name__: c for c in (OwnLoss, OldStyleLoss, ExtraLogs, OwnMetrics)}


@pytest.mark.parametrize("model_class", OVERRIDES.values(), ids=list(OVERRIDES))
def test_overridden_method(model_class: Any, engagements: list[str]) -> None:
    def make() -> keras.Model:
        x = keras.Input((5,))
        return model_class(x, layers.Dense(2)(x))

    x, y = dense_data(N)
    own_loss = issubclass(model_class, OwnLoss)
    compile = {"loss": None} if own_loss else {"metrics": ["mae"]}
    pair = train_pair(make, x, y, compile=compile, fit=TWO_EPOCHS)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    own = {"ExtraLogs": {"worst", "last", "one"}}.get(model_class.__name__, {"gap"})
    assert own <= pair.our_logs.keys()


# --- Masks. ---


def test_mask_of_a_sequence(engagements: list[str]) -> None:
    """Padded steps count neither in the loss nor in the metrics; weights per step."""
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
    # Were the mask lost, the logs would be those of a model without one.
    keras.utils.set_random_seed(1)
    maskless = make(mask=False)
    maskless.compile(SGDPlus(0.02, 0.9, order="given", jit_compile=False), **compile)
    logs = maskless.fit(x, y, batch_size=N, shuffle=False, verbose=0, **fit).history
    for name, value in pair.our_logs.items():
        assert abs(logs[name][0] - value[0]) > 1e-3, name


# --- When the loss is measured. ---


def test_logged_loss_is_progressive() -> None:
    """Each example is judged before its own update, after those of all before it."""
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


# --- State that a model writes while it is called. ---


class Noisy(keras.Model):
    """Adds an unseeded random number to its output, and remembers all it drew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.draws = self.add_weight(shape=(N,), initializer="zeros", trainable=False)
        self.seen = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False
        )

    def call(self, x: Any, training: bool = False) -> Any:
        y = super().call(x)
        if not training:
            return y
        noise = keras.random.normal(())
        here = ops.one_hot(self.seen % N, N)
        self.draws.assign(self.draws * (1 - here) + here * noise)
        self.seen.assign(self.seen + 1)
        return y + noise


def _global_seed_state() -> np.ndarray:
    from keras_sgd_plus import _keras

    return np.array(_keras.global_seed_state().value)


def test_unseeded_random_numbers(engagements: list[str]) -> None:
    """The draws of Keras compiled with XLA, a fresh one for each example."""
    states: list[np.ndarray] = []

    class Remember(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            states.append(_global_seed_state())

    def make() -> keras.Model:
        x = keras.Input((5,))
        keras.random.normal(())  # makes the global seed generator
        return Noisy(x, layers.Dense(2)(x))

    x, y = dense_data(N)
    pair = train_pair(
        make,
        x,
        y,
        compile={"jit_compile": True},
        our_compile={"jit_compile": False},
        fit={"callbacks": [Remember()]},
    )
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    np.testing.assert_array_equal(states[0], states[1])
    assert len(set(pair.ours.draws.numpy().tolist())) == N


class Counting(keras.Model):
    """Counts in a variable how often it was called with each example."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.visits = keras.Variable(np.zeros(N), dtype="int32", trainable=False)

    def call(self, inputs: Any) -> Any:
        which = ops.cast(inputs["id"], "int32")
        hits = ops.sum(ops.one_hot(ops.reshape(which, (-1,)), N, dtype="int32"), 0)
        self.visits.assign(self.visits + hits)
        return super().call(inputs)


def _counting() -> keras.Model:
    x = {"x": keras.Input((5,), name="x"), "id": keras.Input((1,), name="id")}
    both = [x["x"], layers.Rescaling(1 / N)(x["id"])]
    return Counting(x, layers.Dense(2)(layers.Concatenate()(both)))


@pytest.mark.parametrize("order", ["given", "reshuffle"])
def test_each_example_is_visited_once(order: str, engagements: list[str]) -> None:
    x, y = dense_data(N)
    model = _counting()
    model.compile(SGDPlus(order=order, seed=3), "mse")
    data = {"x": x, "id": np.arange(N)[:, None]}
    model.fit(data, y, batch_size=7, epochs=3, verbose=0)
    np.testing.assert_array_equal(model.visits.numpy(), np.full(N, 3))
    assert engagements


class LazyLayer(keras.Model):
    """Creates one of its layers at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(3)
        self.head: Any = None

    def call(self, x: Any) -> Any:
        if self.head is None:
            self.head = layers.Dense(2)
        return self.head(self.hidden(x))


def test_layer_made_in_call(engagements: list[str]) -> None:
    x, y = dense_data(N)
    pair = train_pair(LazyLayer, x, y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class RunningLoss(losses.Loss):
    """Squared error over its running mean, a variable made at the first call."""

    def __init__(self) -> None:
        super().__init__(name="running")
        self.mean: Any = None

    def call(self, y: Any, y_pred: Any) -> Any:
        error = ops.mean(ops.square(y - y_pred), axis=-1)
        if self.mean is None:
            self.mean = keras.Variable(1.0, trainable=False, name="running_mean")
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(error))
        return error / ops.stop_gradient(ops.convert_to_tensor(self.mean))


def test_variable_made_in_loss(engagements: list[str]) -> None:
    """It belongs to no model, optimizer or metric, and is carried all the same."""
    made: list[RunningLoss] = []

    def compile() -> dict[str, Any]:
        made.append(RunningLoss())
        return {"loss": made[-1]}

    x, y = dense_data(N)
    pair = train_pair(dense_model, x, y, compile=compile, fit=TWO_EPOCHS)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    ours, theirs = (float(loss.mean) for loss in made)
    assert abs(theirs - 1.0) > 1e-2
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
