"""Tests of the hook share this training, and train steps that users write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.support.twins import dense_data, linear_model

SGD = keras.optimizers.SGD
MOMENTUM: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9}
GIVEN = {**MOMENTUM, "order": "given"}
PLAIN = {**GIVEN, "jit_compile": False}
EXAMPLES = 12


def data() -> tuple[np.ndarray, np.ndarray]:
    return dense_data(EXAMPLES)


def state_of(model: Any, optimizer: Any) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.trainable_variables, *optimizer.variables)]


def fit(model: Any, batch_size: int = 4, **kwargs: Any) -> Any:
    x, y = data()
    arguments = {"batch_size": batch_size, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **arguments)


def trained(
    optimizer: Any,
    make_model: Callable[[], Any] = linear_model,
    batch_size: int = 4,
    **compile: Any,
) -> Any:
    keras.utils.set_random_seed(1)
    model = make_model()
    model.compile(optimizer, **{"loss": "mse", **compile})
    fit(model, batch_size)
    return model


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    # Velocities and weights move by 0.01 and more here; rounding is below 1e-6.
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = data()
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, EXAMPLES, 4)]


class OwnStep(keras.Sequential):
    """A model with a train step of its own, which `how` makes."""

    how: Any = None

    def __init__(self) -> None:
        super().__init__([keras.Input((5,)), keras.layers.Dense(2)])

    def train_step(self, data: Any) -> Any:
        return type(self).how(self, data)


def own_step(how: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    return type("OwnStep", (OwnStep,), {"how": staticmethod(how)})


def by_super(model: Any, data: Any) -> Any:
    return super(OwnStep, model).train_step(data)


def by_optimizer(model: Any, data: Any) -> Any:
    return model.optimizer.train_step(model, data)


def by_tape(model: Any, data: Any) -> Any:
    x, y = data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    weights = model.trainable_variables
    gradients = tape.gradient(loss, weights)
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return {"mine": loss}
