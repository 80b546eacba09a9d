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
from tests.support.tiers import tiered_keys


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


def test_bypass_warns_after_the_first_batch_and_users_step_wins(
    per_batch: list[np.ndarray],
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_tape)
    during: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        note = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: during.append(len(caught)),
            on_train_batch_end=lambda batch, logs: during.append(len(caught)),
        )
        history = fit(model, callbacks=[note])
    # Nothing before the second batch begins; it is said once.
    assert during[:3] == [0, 0, 0] and during[3:] == [1] * len(during[3:])
    assert during[3:] and len(caught) == 1
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


class Pair(keras.Model):
    """Two networks, as in a GAN: `hold` keeps the optimizer, `find` gives it back."""

    def __init__(self, optimizer: Any, hold: Any, find: Any) -> None:
        super().__init__()
        self.judge = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
        hold(self, optimizer)
        self.find = find

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.judge(data[0]) ** 2)
        weights = self.judge.trainable_variables
        self.find(self).apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def _hold(name: str, pack: Any) -> Any:
    return lambda model, optimizer: setattr(model, name, pack(optimizer))


_outside: list[Any] = []


def _nowhere(model: Any, optimizer: Any) -> None:
    del model
    _outside.append(optimizer)


# Where an optimizer is kept: how, how it is found there, and the text for that line.
HOLDS: dict[str, tuple[Any, Any, str]] = {
    "attribute": (_hold("mine", lambda o: o), lambda m: m.mine, "self.mine"),
    "private": (_hold("_mine", lambda o: o), lambda m: m._mine, "self._mine"),
    "dict": (
        _hold("both", lambda o: {"d": o}),
        lambda m: m.both["d"],
        "self.both['d']",
    ),
    "list": (_hold("both", lambda o: [o]), lambda m: m.both[0], "self.both[0]"),
    "tuple": (_hold("both", lambda o: (1, o)), lambda m: m.both[1], "self.both[1]"),
    "loss_scaled": (
        _hold("mine", keras.optimizers.LossScaleOptimizer),
        lambda m: m.mine,
        "self.mine",
    ),
    "part": (
        lambda m, o: m.judge.compile(o, "mse"),
        lambda m: m.judge.optimizer,
        "self.judge.optimizer",
    ),
    "nowhere": (_nowhere, lambda m: _outside[-1], "optimizer"),
}


@pytest.mark.parametrize("hold", tiered_keys(HOLDS, "attribute", "list", "nowhere"))
def test_bypassed_elsewhere(hold: str, engagements: list[str]) -> None:
    keep, find, place = HOLDS[hold]
    model = Pair(SGDPlus(0.01), keep, find)
    model.compile()
    texts = fits(model)
    assert len(texts) == 1
    assert f"logs = {place}.train_step(network, (x, y))" in texts[0]
    assert "apply_gradients" in texts[0] and "examples_per_update=None" in texts[0]
    assert engagements == []


@pytest.mark.matrix
def test_no_warning_of_other_optimizers_of_a_model() -> None:
    keep, find, _ = HOLDS["attribute"]
    stock = Pair(SGDPlus(0.01, examples_per_update=None), keep, find)
    stock.compile()
    by_hand = Pair(SGDPlus(0.01), keep, find)
    by_hand.compile()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(stock)
        by_hand.train_on_batch(*data())
        tf.function(by_hand.train_step)(data())
        fit(linear(by_hand.mine))


def linear(held: Any) -> Any:
    """A model that holds an optimizer, and is trained by another."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    model.held = held
    model.compile(loss="mse")
    return model


def test_interrupted_fit_is_warned_of_by_the_next() -> None:
    keep, find, _ = HOLDS["attribute"]
    model = Pair(SGDPlus(0.01), keep, find)
    model.compile()

    def stop(batch: int, logs: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)])
    assert len(caught_by(lambda: fit(model), "self.mine.train_step")) == 1
