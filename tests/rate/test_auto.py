"""SGDPlus("auto"): each fit finds its rate and lets it fall, in one word."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import (
    ExactResume,
    LinearDecay,
    SeededArrays,
    SGDPlus,
    find_learning_rate,
)
from tests.support.twins import Interrupt, Interrupted

EXAMPLES = 320


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(EXAMPLES, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, 3))).argmax(axis=1).astype("int32")


def _model(optimizer: Any, dropout: float = 0.1) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "tanh"),
            layers.Dropout(dropout),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def _state(model: Any) -> list[np.ndarray]:
    return [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]


def _assert_bits(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other) > 4
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_the_search_and_the_decay(engagements: list[str]) -> None:
    x, y = _data()
    model = _model(SGDPlus(seed=3))
    found = find_learning_rate(model, x, y)
    model.fit(x, y, batch_size=1000, epochs=10, callbacks=[LinearDecay()])
    auto = _model(SGDPlus("auto", seed=3))
    history = auto.fit(x, y, batch_size=1000, epochs=10)
    _assert_bits(_state(model), _state(auto))
    assert float(auto.optimizer.learning_rate.numpy()) == np.float32(
        found.learning_rate
    )
    rates = history.history["learning_rate"]
    np.testing.assert_allclose(rates[5], found.learning_rate / 2, rtol=1e-6)
    assert len(engagements) == 2  # one trace each


@pytest.mark.matrix
def test_inside_a_loss_scale_optimizer() -> None:
    x, y = _data()
    auto = keras.optimizers.LossScaleOptimizer(SGDPlus("auto", seed=3))
    history = _model(auto).fit(x, y, batch_size=160, epochs=2, verbose=0)
    rates = history.history["learning_rate"]
    np.testing.assert_allclose(rates[1], rates[0] / 3, rtol=1e-6)  # 3/4, then 1/4


@pytest.mark.matrix
def test_each_fit_searches_anew_from_where_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x, y = _data()
    model = _model(SGDPlus("auto", momentum=0.5, seed=3))
    twin = _model(SGDPlus(momentum=0.5, seed=3))
    for _ in range(2):
        model.fit(x, y, batch_size=160, epochs=2, verbose=2)
        find_learning_rate(twin, x, y, batch_size=160, verbose=0)
        twin.fit(x, y, 160, epochs=2, verbose=0, callbacks=[LinearDecay()])
        _assert_bits(_state(model), _state(twin))
    assert capsys.readouterr().out.count("Found learning_rate=") == 2


@pytest.mark.matrix
def test_own_decay_and_held_out_examples() -> None:
    """A `LinearDecay` of the user stays; examples for validation are not looked at."""
    x, y = _data()
    decay = LinearDecay(to=1e-3)
    spoiled = x.copy()
    spoiled[240:] = np.nan
    model = _model(SGDPlus("auto", seed=3))
    model.fit(spoiled, y, 80, verbose=0, validation_split=0.25, callbacks=[decay])
    twin = _model(SGDPlus(seed=3))
    find_learning_rate(twin, x[:240], y[:240], batch_size=80, verbose=0)
    twin.fit(x[:240], y[:240], 80, verbose=0, callbacks=[LinearDecay(to=1e-3)])
    _assert_bits(_state(model), _state(twin))


@pytest.mark.matrix
def test_what_it_says_of_itself(tmp_path: Path) -> None:
    x, y = _data()
    optimizer = SGDPlus("auto", momentum=0.5, seed=3)
    assert repr(optimizer) == "SGDPlus(learning_rate='auto', momentum=0.5, seed=3)"
    model = _model(optimizer, dropout=0.0)  # Keras saves no seeds of dropout
    model.fit(x, y, 160, verbose=0)
    assert optimizer.get_config()["learning_rate"] == "auto"
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == optimizer.get_config()
    assert float(loaded.optimizer.learning_rate) == float(optimizer.learning_rate)
    for each in (model, loaded):
        keras.utils.set_random_seed(7)
        each.fit(x, y, 160, verbose=0)
    _assert_bits(_state(model), _state(loaded))
    assert copy.deepcopy(SGDPlus("auto")).get_config()["learning_rate"] == "auto"


@pytest.mark.matrix
def test_an_assigned_rate_ends_it() -> None:
    x, y = _data()
    model = _model(SGDPlus("auto", seed=3))
    model.optimizer.learning_rate = 0.02
    history = model.fit(x, y, 160, epochs=2, verbose=0)
    assert "learning_rate" not in history.history
    assert model.optimizer.get_config()["learning_rate"] == pytest.approx(0.02)
    model.train_on_batch(x[:10], y[:10])


def _arrays() -> dict[str, Any]:
    return {"x": SeededArrays(*_data(), batch_size=80, seed=1)}


def _shuffled(anew: bool = False) -> dict[str, Any]:
    data = tf.data.Dataset.from_tensor_slices(_data())
    data = data.shuffle(EXAMPLES, seed=1, reshuffle_each_iteration=anew)
    return {"x": data.batch(80).repeat(), "steps_per_epoch": 4}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("stop", "data"),
    [
        ((1, 0), _arrays),
        pytest.param((0, 1), _shuffled, marks=pytest.mark.matrix),
        pytest.param((2, 3), _shuffled, marks=pytest.mark.matrix),
        pytest.param((0, 1), _arrays, marks=pytest.mark.matrix),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_resumed_run_does_not_search_again(
    stop: tuple[int, int],
    data: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(directory: Path, *more: Any) -> list[np.ndarray]:
        model = _model(SGDPlus("auto", momentum=0.5, seed=3))
        model.fit(
            **data(),
            epochs=3,
            shuffle=False,
            verbose=2,
            callbacks=[ExactResume(directory, 1), *more],
        )
        return _state(model)

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", Interrupt(*stop))
    capsys.readouterr()
    _assert_bits(train(tmp_path / "run"), whole)
    assert "Found" not in capsys.readouterr().out


def test_data_that_come_in_another_order_are_refused(tmp_path: Path) -> None:
    model = _model(SGDPlus("auto"))
    with pytest.raises(ValueError, match="must come in the same order"):
        model.fit(**_shuffled(anew=True), callbacks=[ExactResume(tmp_path)])


def _by_hand(model: Any, x: Any, y: Any) -> None:
    model.optimizer.train_step(model, (x, y))


def _gradients(model: Any, x: Any, y: Any) -> None:
    variables = model.trainable_variables
    model.optimizer.apply_gradients([(v.value * 0, v) for v in variables])


def _on_batch(model: Any, x: Any, y: Any) -> None:
    model.train_on_batch(x, y)


def test_steps_outside_fit_are_refused() -> None:
    x, y = _data()
    model = _model(SGDPlus("auto"))
    ways = (_on_batch, _by_hand, _gradients)
    for train in ways:
        with pytest.raises(ValueError, match="Call find_learning_rate"):
            train(model, x[:10], y[:10])
    model.fit(x, y, 160, verbose=0)
    for train in ways:
        with pytest.raises(ValueError, match="Call find_learning_rate"):
            train(model, x[:10], y[:10])
    find_learning_rate(model, x, y, batch_size=160, verbose=0)
    for train in ways:
        train(model, x[:10], y[:10])


@pytest.mark.matrix
def test_it_can_be_switched_on_again() -> None:
    x, y = _data()
    model = _model(SGDPlus(0.02, seed=3))
    model.optimizer.learning_rate = "auto"
    history = model.fit(x, y, 160, epochs=2, verbose=0)
    assert "learning_rate" in history.history


@pytest.mark.parametrize(
    "other",
    [
        keras.callbacks.ReduceLROnPlateau("loss"),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    ],
    ids=lambda other: type(other).__name__,
)
def test_other_callbacks_that_set_the_rate_are_refused(other: Any) -> None:
    x, y = _data()
    with pytest.raises(ValueError, match="must be alone in setting the learning rate"):
        _model(SGDPlus("auto")).fit(x, y, callbacks=[other])


def test_one_update_per_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="must update per example"):
        SGDPlus("auto", examples_per_update=None)


@pytest.mark.parametrize(
    ("fit", "match"),
    [
        ({"x": iter([1])}, "read once"),
        ({"x": np.ones((10, 6)), "y": np.ones(10)}, "64 updates"),
    ],
)
def test_data_that_cannot_be_searched(fit: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _model(SGDPlus("auto")).fit(**fit, verbose=0)


def test_a_list_of_callbacks_made_before_is_refused() -> None:
    x, y = _data()
    model = _model(SGDPlus("auto"))
    made = keras.callbacks.CallbackList([], model=model, epochs=1, steps=2)
    with pytest.raises(TypeError, match="must be a list of callbacks"):
        model.fit(x, y, 160, verbose=0, callbacks=made)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match='"auto"'):
        SGDPlus("automatic")


_COUNT = """
import sys, numpy as np, keras, tensorflow as tf
from keras_sgd_plus import LinearDecay, SGDPlus, find_learning_rate
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
model.compile(SGDPlus(0.01), "mse")
x = np.random.default_rng(0).normal(size=(530, 5)).astype("float32")
y = x[:, :2]
data, size = (x, y), {"batch_size": 200}
if sys.argv[1] == "dataset":
    data, size = (tf.data.Dataset.from_tensor_slices((x, y)).batch(200),), {}
if sys.argv[2] == "search":
    find_learning_rate(model, *data, batch_size=200, verbose=0)
else:
    model.optimizer.learning_rate = 0.03
model.fit(*data, **size, epochs=3, verbose=0, callbacks=[LinearDecay()])
assert int(model.optimizer.iterations) == 3 * 530
"""


@pytest.mark.matrix
@pytest.mark.parametrize("source", ["arrays", "dataset"])
def test_a_search_compiles_nothing_more(source: str, tmp_path: Path) -> None:
    """How many modules XLA compiled for `fit` alone, and with a search before it."""
    counts = []
    for way in ("alone", "search"):
        flags = f"--xla_dump_to={tmp_path / way} --xla_dump_hlo_as_text"
        environment = {**os.environ, "XLA_FLAGS": flags}
        command = [sys.executable, "-c", textwrap.dedent(_COUNT), source, way]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        counts.append(len(list((tmp_path / way).glob("*before_optimizations.txt"))))
    assert counts[0] == counts[1] > 0
