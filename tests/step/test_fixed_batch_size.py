"""A model that was built for a batch size and has no state trains like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.replicas import mirrored
from tests.support.twins import assert_engaged, assert_same, train_pair

SIZE = 6  # that the models were built for
X = np.random.default_rng(0).normal(size=(20, 4, 3)).astype("float32")
Y = X[:, :2, 0]


def _functional() -> Any:
    x = keras.Input((4, 3), batch_size=SIZE)
    return keras.Model(x, layers.Dense(2)(layers.LSTM(3)(x)))


def _reshaped() -> Any:
    x = keras.Input(batch_shape=(SIZE, 4, 3))
    return keras.Model(x, layers.Dense(2)(layers.Reshape((12,))(x)))


def _sequential() -> Any:
    first = layers.InputLayer(batch_shape=(SIZE, 4, 3))
    return keras.Sequential([first, layers.Flatten(), layers.Dense(2)])


def _nested() -> Any:
    x = keras.Input((4, 3), batch_size=SIZE)
    inner = keras.Sequential([keras.Input((4, 3), batch_size=SIZE), layers.Flatten()])
    return keras.Model(x, layers.Dense(2)(inner(x)))


def _time_first() -> Any:
    # The time axis is as long as the batch, which an operation moves away and back.
    x = keras.Input((4, 3), batch_size=4)
    moved = layers.Dense(3)(keras.ops.transpose(x, (1, 0, 2)))
    flat = layers.Flatten()(keras.ops.transpose(moved, (1, 0, 2)))
    return keras.Model(x, layers.Dense(2)(flat))


MODELS = [_functional, _reshaped, _sequential, _nested, _time_first]


@pytest.mark.parametrize("make", MODELS)
def test_trains_as_keras_does(make: Callable[[], Any], engagements: list[str]) -> None:
    pair = train_pair(make, X, Y, plus={"order": "given", "jit_compile": False})
    assert_engaged(pair, engagements, 20)
    assert_same(pair)
    assert pair.ours.predict(X, batch_size=SIZE, verbose=0).shape == (20, 2)


@pytest.mark.matrix
def test_trains_in_groups(engagements: list[str]) -> None:
    plus = {"order": "given", "examples_per_update": 4}
    groups = {"batch_size": 8}
    pair = train_pair(
        _functional, X, Y, plus=plus, our_fit=groups, their_fit={"batch_size": 4}
    )
    assert_engaged(pair, engagements, 5)
    assert_same(pair)


def test_trains_on_after_it_was_saved(tmp_path: Path, engagements: list[str]) -> None:
    model = _sequential()
    model.compile(SGDPlus(0.01, jit_compile=False), "mse")
    model.fit(X, Y, batch_size=SIZE, verbose=0)
    model.save(tmp_path / "model.keras")
    again: Any = keras.models.load_model(tmp_path / "model.keras")
    again.fit(X, Y, batch_size=SIZE, verbose=0)
    assert int(again.optimizer.iterations) == 2 * len(X)
    assert len(engagements) >= 2


@pytest.mark.matrix
def test_a_model_that_the_first_part_of_a_batch_built(
    tmp_path: Path, engagements: list[str]
) -> None:
    # Two replicas build it with half of the batch, and swap its averages each epoch.
    with mirrored(2).scope():
        model = keras.Sequential([layers.Flatten(), layers.Dense(2)])
        optimizer = SGDPlus(0.01, use_ema=True, ema_momentum=0.9, jit_compile=False)
        model.compile(optimizer, "mse", metrics=["mse"])
        path = str(tmp_path / "{epoch}.keras")
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        save = keras.callbacks.ModelCheckpoint(path)
        model.fit(X[:10], Y[:10], epochs=2, callbacks=[swap, save], verbose=0)
    assert model.inputs[0].shape[0] == 5
    again: Any = keras.models.load_model(tmp_path / "2.keras")
    found = [
        m.evaluate(X[:10], Y[:10], return_dict=True, verbose=0)["mse"]
        for m in (model, again)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert engagements
    assert int(optimizer.iterations.numpy()) == 20
