"""What SGDPlus builds before the first batch is what Keras's own first `fit` leaves."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.replicas import mirrored
from tests.support.twins import assert_engaged, assert_same, dense_data, train_pair

N = 12
X, Y = dense_data(N, outputs=1)
WITHOUT_XLA = {"jit_compile": False}


class WithAuxiliary(keras.Model):
    """Has a second output in training alone, as deep networks with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(4, "tanh")
        self.main, self.other = layers.Dense(1), layers.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        hidden = self.hidden(x)
        main = self.main(hidden)
        return (main, self.other(hidden)) if training else main


def test_losses_are_built_for_the_outputs_of_training(engagements: list[str]) -> None:
    losses = {"loss": ["mse", "mae"], "metrics": [["mae"], ["mse"]]}
    pair = train_pair(WithAuxiliary, X, (Y, -Y), plus=WITHOUT_XLA, compile=losses)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class Scaled(keras.losses.Loss):
    """Makes a variable at its first call, from a value."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Any = None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.scale is None:
            self.scale = keras.Variable(np.float32(0.5), trainable=False)
        return keras.ops.mean((y_true - y_pred) ** 2 * self.scale, -1)


def one_output_in_a_list() -> keras.Model:
    x = keras.Input((5,))
    return keras.Model(x, [layers.Dense(1)(x)])


def test_a_loss_that_makes_variables_sees_the_outputs_of_a_call(
    engagements: list[str],
) -> None:
    compile = lambda: {"loss": Scaled()}  # noqa: E731
    pair = train_pair(one_output_in_a_list, X, Y, plus=WITHOUT_XLA, compile=compile)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    seen = [m.evaluate(X, Y, 5, 0) for m in (pair.ours, pair.theirs)]
    np.testing.assert_allclose(*seen, rtol=1e-5)


@pytest.mark.matrix
def test_one_output_in_a_list_on_several_replicas(engagements: list[str]) -> None:
    with mirrored(2).scope():
        model = one_output_in_a_list()
        model.compile(SGDPlus(0.0, **WITHOUT_XLA), "mse", metrics=["mae"])
    logs = model.fit(X, Y, batch_size=4, verbose=0, validation_data=(X, Y)).history
    assert engagements
    error = model.predict(X, verbose=0) - Y
    expected = [np.mean(error**2), np.mean(np.abs(error))]
    found = [logs[name][0] for name in ("loss", "mae", "val_loss", "val_mae")]
    np.testing.assert_allclose(found, [*expected, *expected], rtol=1e-5)
    np.testing.assert_allclose(model.evaluate(X, Y, 4, 0), expected, rtol=1e-5)


class OfSparse(keras.Model):
    """Takes a sparse tensor, of which it needs the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x: Any) -> Any:
        rows = tf.sparse.reduce_sum(x, 1, keepdims=True)
        return self.dense(tf.ensure_shape(rows, (None, 1)))


class OfRagged(keras.Model):
    """Takes a ragged tensor, of which it needs the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x: Any) -> Any:
        lengths = tf.cast(x.row_lengths(), tf.float32)
        return self.dense(lengths[:, None] + tf.reduce_sum(x, 1)[:, None])


@pytest.mark.matrix
@pytest.mark.parametrize("kind", [OfSparse, OfRagged])
def test_a_model_is_built_with_tensors_of_the_kind_that_it_gets(
    kind: type[keras.Model], engagements: list[str]
) -> None:
    if kind is OfSparse:
        x: Any = tf.sparse.from_dense(X)
    else:
        x = tf.RaggedTensor.from_tensor(X, lengths=[i % 5 + 1 for i in range(N)])
    runs = []
    for cls, size in ((SGDPlus, 4), (keras.optimizers.SGD, 1)):
        keras.utils.set_random_seed(1)
        model = kind()
        plus = {"order": "given", **WITHOUT_XLA} if cls is SGDPlus else {}
        model.compile(cls(0.01, **plus), "mse")
        data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(size)
        logs = model.fit(data, shuffle=False, verbose=0).history
        runs.append([*model.get_weights(), *logs["loss"]])
    assert engagements
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
