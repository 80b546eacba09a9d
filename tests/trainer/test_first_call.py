"""A first batch that compiles for long is explained meanwhile, once per model."""

from __future__ import annotations

import threading
import time
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import notices
from tests.support.messages import caught_by
from tests.support.twins import dense_data, linear_model

X, Y = dense_data(6)


class _SlowToTrace(keras.layers.Layer):
    """Takes as long to trace as a large model."""

    seconds = 0.3

    def call(self, x: Any) -> Any:
        time.sleep(self.seconds)
        return x


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SECONDS", 0.1)


def _compiled(slow: bool = True, **plus: Any) -> Any:
    model = linear_model()
    if slow:
        inputs = keras.Input((5,))
        model = keras.Model(inputs, model(_SlowToTrace()(inputs)))
    model.compile(SGDPlus(0.01, **plus), "mse")
    return model


def _fit(model: Any) -> None:
    model.fit(X, Y, batch_size=3, verbose=0)


@pytest.mark.usefixtures("_soon")
def test_explains_a_long_first_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = _compiled(), []
    warn = notices.warnings.warn

    def heard(text: str) -> None:
        # While the first batch is on its way, and from another thread.
        said.append(int(model.optimizer.iterations))
        assert threading.current_thread() is not threading.main_thread()
        warn(text)

    monkeypatch.setattr(notices.warnings, "warn", heard)
    texts = caught_by(lambda: (_fit(model), _fit(model)), "The first batch of model")
    assert len(texts) == 1 and said == [0]
    assert repr(model.name) in texts[0] and "jit_compile=False" in texts[0]
    # A new trace of the same model says nothing more.
    model.make_train_function(force=True)
    assert caught_by(lambda: _fit(model), "") == []


@pytest.mark.usefixtures("_soon")
def test_says_nothing_where_nothing_is_compiled() -> None:
    assert caught_by(lambda: _fit(_compiled(jit_compile=False)), "") == []


def test_a_short_first_batch_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    model = _compiled(slow=False)
    assert caught_by(lambda: _fit(model), "") == []
    time.sleep(0.1)  # a timer that was cancelled ends at once
    assert threading.active_count() <= before


@pytest.mark.matrix
def test_does_not_contradict_a_refusal_of_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    # XLA has refused before the wait is explained, on a slow machine, too.
    monkeypatch.setattr(notices, "SECONDS", 1.5)
    monkeypatch.setattr(_SlowToTrace, "seconds", 2.0)
    inputs = keras.Input((4, 4, 1))
    trained = keras.layers.Conv2D(1, 1)(inputs)  # so that the zoom cannot run ahead
    hidden = _SlowToTrace()(keras.layers.RandomZoom(0.2)(trained))
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(SGDPlus(0.01), "mse")
    refused, slow = caught_by(lambda: model.fit(np.ones((4, 4, 4, 1)), np.ones(4)), "")
    assert "Training goes on without XLA" in refused
    assert "TensorFlow traces the loop over examples, without XLA. " in slow
    assert "XLA compiles it" not in slow and "jit_compile" not in slow


@pytest.mark.matrix
@pytest.mark.usefixtures("_soon")
def test_trains_where_warnings_are_errors() -> None:
    model = _compiled()
    _fit(model)  # as pyproject.toml says
    assert int(model.optimizer.iterations) == 6
