"""A train step that goes around the loop gives one warning at the end of `fit`."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support import messages
from tests.support.messages import caught_by
from tests.support.steps import (
    GIVEN,
    MOMENTUM,
    PLAIN,
    assert_close,
    by_super,
    by_tape,
    data,
    fit,
    own_step,
    state_of,
)


def fits(model: Any) -> list[str]:
    """Messages of two fits; the second traces anew, since its last batch is shorter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, batch_size=4)
        fit(model, batch_size=5, epochs=2)
    return [str(w.message) for w in caught]


def compiled(optimizer: Any, how: Any, run_eagerly: bool = False) -> Any:
    keras.utils.set_random_seed(1)
    model = own_step(how)()
    model.compile(optimizer, loss="mse", run_eagerly=run_eagerly)
    return model


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_bypass_warns_exactly_once(run_eagerly: bool, engagements: list[str]) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_tape, run_eagerly)
    texts = fits(model)
    assert len(texts) == 1
    assert optimizer.name in texts[0]
    assert "Return self.optimizer.train_step(self, data)" in texts[0]
    assert "super().train_step(data)" in texts[0]
    assert "examples_per_update=None" in texts[0]
    assert engagements == []


def test_bypass_warns_at_the_end_of_fit_and_users_step_wins(
    per_batch: list[np.ndarray],
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_tape)
    during: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: during.append(len(caught))
        )
        history = fit(model, callbacks=[note])
    assert (during, len(caught)) == ([0], 1)
    assert list(history.history) == ["mine"]
    assert_close(state_of(model, optimizer), per_batch)


def test_bypass_warns_through_loss_scale_optimizer() -> None:
    inner = SGDPlus(**GIVEN)
    model = compiled(keras.optimizers.LossScaleOptimizer(inner), by_tape)
    texts = fits(model)
    assert len(texts) == 1
    assert inner.name in texts[0]


def test_no_warning_where_one_update_per_batch_is_meant(
    per_batch: list[np.ndarray], engagements: list[str]
) -> None:
    optimizer = SGDPlus(**MOMENTUM, examples_per_update=None)
    model = compiled(optimizer, by_tape)
    fit(model)
    assert_close(state_of(model, optimizer), per_batch)
    assert fits(model) == []
    assert engagements == []


def test_no_warning_where_the_loop_runs() -> None:
    optimizer = SGDPlus(**PLAIN)
    model = compiled(optimizer, by_super)
    by_tape(model, [tf.constant(part) for part in data()])  # a warm-up by hand
    assert fits(model) == []


@pytest.mark.parametrize("fit_before", [False, True])
def test_no_warning_for_loops_by_hand(fit_before: bool) -> None:
    optimizer = SGDPlus(**PLAIN)
    model = compiled(optimizer, by_super)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fit_before:
            fit(model)
        step = tf.function(lambda x, y: by_tape(model, (x, y)))
        step(*data())
        by_tape(model, [tf.constant(part) for part in data()])
        optimizer.finalize_variable_values(model.trainable_variables)
    assert [str(w.message) for w in caught] == []


def test_bypassed() -> None:
    class ByTape(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x))
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = messages.compiled(ByTape([keras.Input((5,)), layers.Dense(2)]))
    texts = caught_by(lambda: messages.fit(model), "Return self.optimizer.train_step")
    assert len(texts) == 1
