"""A model may write state while it is called, and read it in the next example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, losses, ops

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
TWO_EPOCHS = {"epochs": 2}  # the second starts from metrics that were reset


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
    from tests.support.internals import keras_optimizer

    return np.array(keras_optimizer.global_seed_state().value)


@pytest.mark.matrix
def test_unseeded_random_numbers(engagements: list[str]) -> None:
    """Each example gets a fresh number, the one that Keras draws if XLA compiles it."""
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


@pytest.mark.matrix
def test_variable_made_in_loss(engagements: list[str]) -> None:
    """The loop carries a variable that belongs to no model, optimizer or metric."""
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


class LossInside(keras.Model):
    """Calls a loss in its `call`; the loss makes its variable there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.running = layers.Dense(2), RunningLoss()

    def call(self, x: Any) -> Any:
        found = self.inner(x)
        self.add_loss(0.1 * self.running(ops.zeros_like(found), found))
        return found


@pytest.mark.matrix
def test_variable_made_by_a_loss_in_call(engagements: list[str]) -> None:
    x, y = dense_data(N)
    pair = train_pair(LossInside, x, y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class Echo(layers.Layer):
    """Assigns to a frozen and to a trainable variable, and reads them at once."""

    def build(self, input_shape: Any) -> None:
        del input_shape
        self.gain = self.add_weight((), "ones")
        self.mean = self.add_weight((), "zeros", trainable=False)

    def call(self, x: Any) -> Any:
        before = x * self.gain
        self.mean.assign(keras.ops.mean(before))
        self.gain.assign(0.9 * self.gain + 0.1 * keras.ops.mean(before**2))
        return before + x * self.gain + 0.1 * self.mean


class Compiled(keras.Model):
    """Uses one layer inside a tf.function and outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(5, activation="tanh")
        self.head = layers.Dense(2)

    @tf.function
    def inner(self, x: Any) -> Any:
        return self.hidden(x)

    def call(self, x: Any) -> Any:
        return self.head(self.inner(x) + self.hidden(x))


class Plain(Compiled):
    """The same without a tf.function."""

    def inner(self, x: Any) -> Any:
        return self.hidden(x)


@pytest.mark.matrix
def test_a_function_in_the_model_reads_the_current_weights(
    engagements: list[str],
) -> None:
    """Its trace holds the variables, which keep their old values during the batch."""
    x, y = dense_data(N)
    ours_then_theirs = iter([Compiled, Plain])
    pair = train_pair(lambda: next(ours_then_theirs)(), x, y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


ASSIGNING = {
    "spectral": lambda: layers.SpectralNormalization(layers.Dense(5)),
    "echo": Echo,
}


@pytest.mark.matrix
@pytest.mark.parametrize("make", tiered_rows(ASSIGNING))
def test_assigning_in_call_cuts_the_gradient(
    make: Callable[[], layers.Layer], engagements: list[str]
) -> None:
    """A tape takes a variable for a leaf, also after an assignment."""

    def make_model() -> keras.Model:
        first = layers.Dense(5, activation="tanh")
        return keras.Sequential([keras.Input((5,)), first, make(), layers.Dense(2)])

    x, y = dense_data(N)
    pair = train_pair(make_model, x, y, sgd={"learning_rate": 0.005})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
