"""Replicas refuse some arguments, strategies and calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.replicas import (
    compiled,
    mirrored,
)
from tests.support.twins import dense_data, dense_model


@pytest.mark.parametrize(
    "plus, compile, text",
    [
        ({"gradient_accumulation_steps": 3}, {}, "Use examples_per_update=3"),
        ({}, {"jit_compile": True}, r"compile\(jit_compile=True\). Leave that out"),
        ({}, {"steps_per_execution": 4}, "steps_per_execution=4.*Leave"),
    ],
    ids=["accumulation", "jit_compile", "steps_per_execution"],
)
def test_refused(plus: dict[str, Any], compile: dict[str, Any], text: str) -> None:
    x, y = dense_data(14)
    with mirrored(2).scope():
        model = dense_model()
        model.compile(SGDPlus(**plus), "mse", **compile)
    before = model.get_weights()
    with pytest.raises(NotImplementedError, match=text):
        model.fit(x, y, batch_size=7, verbose=0)
    for ours, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, start)


def test_another_strategy_is_refused() -> None:
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"])
    text = "Received: CentralStorageStrategy"
    x, y = dense_data(14)
    with strategy.scope():
        with pytest.raises(NotImplementedError, match=text):
            SGDPlus()
        optimizer = SGDPlus(examples_per_update=None)
        with pytest.raises(NotImplementedError, match=text):
            optimizer.examples_per_update = 1
        assert optimizer.examples_per_update is None
        model = dense_model()
    model.compile(SGDPlus(), "mse")
    with pytest.raises(NotImplementedError, match=text):
        model.fit(x, y, batch_size=7, verbose=0)


def test_made_outside_the_scope() -> None:
    x, y = dense_data(14)
    with mirrored(2).scope():
        model = dense_model()
    model.compile(SGDPlus(), "mse")
    with pytest.raises(ValueError, match=r"inside strategy.scope\(\). Received: one"):
        model.fit(x, y, batch_size=7, verbose=0)


def test_called_by_no_replica() -> None:
    with mirrored(2).scope():
        model = compiled(dense_model)()
        with pytest.raises(RuntimeError, match="Use strategy.run"):
            model.optimizer.train_step(model, dense_data(14))


def test_train_on_batch_is_refused() -> None:
    with mirrored(2).scope():
        model = compiled(dense_model)()
    with pytest.raises(NotImplementedError, match="Use fit"):
        model.train_on_batch(*dense_data(14))
