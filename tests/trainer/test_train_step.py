"""`optimizer.train_step` works eagerly, in a `tf.function`, and after changes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.steps import (
    EXAMPLES,
    GIVEN,
    PLAIN,
    assert_close,
    batches,
    state_of,
)
from tests.support.tiers import matrix
from tests.support.twins import dense_model, linear_model


def test_by_hand_compiles_once(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse")
    logs = [optimizer.train_step(model, batch) for batch in batches()]
    assert_close(state_of(model, optimizer), per_example)
    assert int(optimizer.iterations) == EXAMPLES
    assert 1 <= len(engagements) <= 2  # the first trace builds the optimizer
    assert all(np.isfinite(float(log["loss"])) for log in logs)
    before = len(engagements)
    optimizer.learning_rate = 0.01
    for _ in range(2):
        for batch in batches():
            optimizer.train_step(model, batch)
    assert len(engagements) == before
    assert int(optimizer.iterations) == 3 * EXAMPLES


def test_by_hand_follows_recompile(engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**PLAIN)
    batch = batches()[0]
    model.compile(optimizer, loss="mse")
    optimizer.train_step(model, batch)
    engagements.clear()
    model.compile(optimizer, loss="mae", metrics=["mse"])
    before = model.get_weights()
    logs = optimizer.train_step(model, batch)
    assert set(logs) == {"loss", "mse"}
    assert engagements
    # The gradient of a mean absolute error of two outputs is x * 0.5 * sign.
    assert not np.array_equal(before[0], model.get_weights()[0])
    assert int(optimizer.iterations) == 8


@pytest.mark.parametrize("recompiled", [False, *matrix(True)])
def test_by_hand_follows_freezing(recompiled: bool, engagements: list[str]) -> None:
    model, optimizer = dense_model(), SGDPlus(**PLAIN)
    optimizer.build(model.trainable_variables)
    batch = batches()[0]

    def moved(trainable: bool) -> list[bool]:
        model.layers[0].trainable = trainable
        if recompiled:
            model.compile(optimizer, loss="mse")
        before = model.get_weights()
        optimizer.train_step(model, batch)
        after = model.get_weights()
        return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    model.compile(optimizer, loss="mse")
    assert moved(trainable=True) == [True, True, True, True]
    assert moved(trainable=False) == [False, False, True, True]
    assert moved(trainable=True) == [True, True, True, True]
    assert len(engagements) >= 3
    assert int(optimizer.iterations) == 12


@pytest.mark.matrix
def test_by_hand_in_a_function_of_the_user(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: optimizer.train_step(model, (x, y)))
    for x, y in batches():
        logs = step(tf.constant(x), tf.constant(y))
    assert set(logs) == {"loss"}
    assert_close(state_of(model, optimizer), per_example)
    assert engagements == [model.name]
    assert int(optimizer.iterations) == EXAMPLES


def test_by_hand_on_a_model_of_run_eagerly(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse", run_eagerly=True)
    for batch in batches():
        optimizer.train_step(model, batch)
    assert_close(state_of(model, optimizer), per_example)
    assert engagements == [model.name] * 3
