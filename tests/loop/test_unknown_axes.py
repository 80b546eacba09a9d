"""Data with axes of unknown length: what goes round the loop keeps its static shape."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.tiers import matrix, tiered_rows

N, STEPS = 24, 6
X = np.random.default_rng(0).normal(size=(N, STEPS, 1)).astype("float32")
Y = X[:, 0, 0]


class Mix(layers.Layer):
    """Multiplies by a weight of shape (1, n): its gradient is a sum over the series."""

    def build(self, shape: Any) -> None:
        del shape
        self.weight = self.add_weight(shape=(1, 10), name="weight")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.weight)


class Remembers(layers.Layer):
    """Assigns to a state what has lost its static shape."""

    def build(self, shape: Any) -> None:
        self.state = self.add_weight(
            shape=(1, shape[-1]), initializer="zeros", trainable=False, name="state"
        )

    def call(self, x: Any) -> Any:
        last = tf.reduce_mean(x, 1)
        ends = tf.concat([[1], tf.shape(x)[2:]], 0)  # not known while tracing
        self.state.assign(0.9 * self.state + 0.1 * tf.reshape(last, ends))
        return x + tf.stop_gradient(self.state)


class Bounded(keras.constraints.Constraint):
    """Gives back a weight whose static shape is lost."""

    def __call__(self, w: Any) -> Any:
        return tf.reshape(tf.clip_by_value(w, -0.3, 0.3), tf.shape(tf.identity(w)))


LAYERS: dict[str, Any] = {
    "own": lambda: [Mix()],
    "dense": lambda: [layers.Dense(10, "tanh")],
    "state": lambda: [layers.Dense(4), Remembers()],
    "constraint": lambda: [layers.Dense(4, kernel_constraint=Bounded())],
    "conv": lambda: [layers.Conv1D(4, 3, padding="same"), layers.LayerNormalization()],
    "gru": lambda: [layers.GRU(4, return_sequences=True)],
}


def batches(size: int) -> tf.data.Dataset:
    """Of which tracing knows the rank alone, as of `timeseries_dataset_from_array`."""
    signature = (tf.TensorSpec((None, None, 1)), tf.TensorSpec((None,)))
    parts = lambda: ((X[i : i + size], Y[i : i + size]) for i in range(0, N, size))  # noqa: E731
    data = tf.data.Dataset.from_generator(parts, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(N // size))


def trained(cls: type, size: int, hidden: Any, **settings: Any) -> list[Any]:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((None, 1))
    for layer in hidden():
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    model.compile(cls(0.01, momentum=0.9, **settings), "mse")
    logs = model.fit(batches(size), shuffle=False, verbose=0).history
    return [*model.get_weights(), *logs["loss"]]


@pytest.mark.parametrize("jit_compile", [False, *matrix(True)])
@pytest.mark.parametrize("hidden", tiered_rows(LAYERS, "gru"))
def test_equals_keras(hidden: Any, jit_compile: bool, engagements: list[str]) -> None:
    ours = trained(SGDPlus, 8, hidden, order="given", jit_compile=jit_compile)
    assert engagements
    theirs = trained(keras.optimizers.SGD, 1, hidden)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_dataset_of_time_series(engagements: list[str]) -> None:
    """As Keras's own function makes it, of a plain series."""
    series = np.sin(np.arange(60) / 5).astype("float32")[:, None]

    def fit(cls: type, size: int, **settings: Any) -> list[Any]:
        data = keras.utils.timeseries_dataset_from_array(
            series[:-6], series[6:], 6, batch_size=size
        )
        keras.utils.set_random_seed(0)
        model = keras.Sequential([layers.Dense(8, "tanh"), layers.Flatten()])
        model.add(layers.Dense(1))
        model.build((None, 6, 1))
        model.compile(cls(0.01, **settings), "mse")
        model.fit(data, shuffle=False, verbose=0)
        return model.get_weights()

    ours = fit(SGDPlus, 16, order="given", jit_compile=False)
    assert engagements
    for a, b in zip(ours, fit(keras.optimizers.SGD, 1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
