"""The loop carries kernels transposed, and updates them after their last reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.hlo import copies, loop_bodies
from tests.support.internals import Carry, RuleVariables, layout, one_kernel, tracing
from tests.support.twins import assert_engaged, assert_same, dense_data, train_pair

layers: Any = keras.layers


class _OwnCall(layers.Dense):
    def call(self, inputs: Any, training: Any = None) -> Any:
        return keras.ops.matmul(inputs, self.kernel)


def _sequential(*parts: Any, inputs: Any = (5,)) -> Callable[[], keras.Model]:
    return lambda: keras.Sequential([keras.Input(inputs), *parts])


def _lora() -> keras.Model:
    layer = layers.Dense(2)
    model = keras.Sequential([keras.Input((5,)), layer])
    layer.enable_lora(2)
    return model


# A model, and how many of its weights and velocities the loop carries transposed.
CHOICES: dict[str, tuple[Callable[[], keras.Model], int]] = {
    "two_layers": (_sequential(layers.Dense(4), layers.Dense(2)), 4),
    "wide": (_sequential(layers.Dense(9)), 2),
    "on_sequences": (_sequential(layers.Dense(2), inputs=(3, 5)), 0),
    "constraint": (
        _sequential(layers.Dense(2, kernel_constraint=keras.constraints.MaxNorm(1))),
        0,
    ),
    "regularizer": (_sequential(layers.Dense(2, kernel_regularizer="l2")), 0),
    "bias_regularizer": (_sequential(layers.Dense(2, bias_regularizer="l2")), 2),
    "frozen": (_sequential(layers.Dense(4, trainable=False), layers.Dense(2)), 2),
    "own_call": (_sequential(_OwnCall(2)), 0),
    "mixed_precision": (_sequential(layers.Dense(2, dtype="mixed_bfloat16")), 0),
    "half_precision_below": (
        _sequential(layers.Dense(4, dtype="mixed_bfloat16"), layers.Dense(2)),
        0,
    ),
    "embedding": (_sequential(layers.Embedding(9, 3), layers.Flatten()), 0),
    "lora": (_lora, 0),
    "large": (_sequential(layers.Dense(101), layers.Dense(2), inputs=(5000,)), 2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_which_variables_are_transposed(name: str) -> None:
    make_model, expected = CHOICES[name]
    model = make_model()
    optimizer = SGDPlus(0.01, 0.9)
    optimizer.build(model.trainable_variables)
    carry = Carry(model, optimizer)
    rows = RuleVariables.of(optimizer, model.trainable_variables).rows
    chosen = layout.transposed(model, carry.variables, rows)
    assert len(chosen) == expected
    assert all(len(carry.variables[i].shape) == 2 for i in chosen)


@keras.saving.register_keras_serializable("test_layout")
class Tied(keras.Model):
    """A kernel that its layer, another layer and a loss use."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = layers.Dense(6), layers.Dense(2)

    def call(self, x: Any) -> Any:
        hidden = keras.ops.tanh(self.inner(x))
        self.add_loss(0.1 * keras.ops.sum(keras.ops.square(self.inner.kernel[1:])))
        back = keras.ops.matmul(hidden, keras.ops.transpose(self.inner.kernel))
        return self.outer(self.inner(back))


@pytest.mark.matrix
def test_a_kernel_may_be_used_elsewhere_too(engagements: list[str]) -> None:
    x, y = dense_data()
    fit = {"epochs": 2}
    pair = train_pair(Tied, x, y, fit=fit, compile={"jit_compile": "auto"})
    assert_engaged(pair, engagements, 2 * len(x))
    assert_same(pair)


@pytest.mark.matrix
def test_a_short_group_and_other_ranks(engagements: list[str]) -> None:
    """Groups leave a rest, whose update is not part of the loop."""

    def make_model() -> keras.Model:
        dense = layers.Dense(5, activation="tanh")
        inputs = keras.Input((5,))
        hidden = dense(inputs)
        again = dense(keras.ops.stack([hidden, inputs], 1))  # rank 3
        return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(again)))

    x, y = dense_data(22)
    pair = train_pair(
        make_model,
        x,
        y,
        plus={"order": "given", "examples_per_update": 4},
        our_fit={"batch_size": 22},
        their_fit={"batch_size": 4},
    )
    assert_engaged(pair, engagements, 6)
    assert_same(pair)


def _mlp() -> tuple[keras.Model, Any, Any]:
    model = keras.Sequential(
        [
            keras.Input((80,)),
            layers.Dense(72, "relu"),
            layers.Dense(70, "relu"),
            layers.Dense(60),
        ]
    )
    model.compile(SGDPlus(0.01, 0.9), "mse")
    rng = np.random.default_rng(0)
    return model, rng.normal(size=(8, 80)), rng.normal(size=(8, 60)).astype("float32")


def test_no_kernel_is_copied_or_transposed_in_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bodies = loop_bodies(monkeypatch, *_mlp())
    assert copies(bodies, one_kernel.MIN_COPY) == []
    assert "f32[80,72]" not in "".join(bodies)  # as Keras stores it


@pytest.mark.matrix
def test_without_the_dependency_kernels_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this fails, XLA no longer needs the dependency."""
    monkeypatch.setattr(
        one_kernel.BackwardReaders,
        "rate_after",
        lambda self, weight, learning_rate: learning_rate,
    )
    bodies = loop_bodies(monkeypatch, *_mlp())
    assert len(copies(bodies, one_kernel.MIN_COPY)) == 2  # all but the first layer's


def test_only_what_costs_something_is_kept_from_being_repeated() -> None:
    @tf.function(autograph=False)
    def run(image: Any, kernel: Any, one: Any) -> Any:
        hidden = tf.nn.relu(tf.matmul(tf.reshape(image, (1, -1)), kernel))
        pooled = tf.reduce_max(tf.stack([image, image * 2 + 1, -image]), 0)
        with tracing.active(one):
            assert not tracing.is_costly(tf.reshape(image, (1, -1)))
            assert not tracing.is_costly(hidden)
            assert tracing.is_costly(tf.reshape(pooled, (1, -1)))
            return tracing.computed_once(pooled), pooled

    kernel = tf.ones((16, 3))
    once, pooled = run(tf.random.normal((4, 4)), kernel, tf.constant(1))
    np.testing.assert_array_equal(once, pooled)
