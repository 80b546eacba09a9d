"""A loop that XLA compiles uses the other forms, in the thread that traces it."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import hooks, keras_optimizer, pooled, tracing
from tests.support.messages import normalises
from tests.support.tiers import matrix
from tests.support.twins import assert_engaged, assert_same, train_pair

pytestmark = normalises


@pytest.fixture(autouse=True)
def _installed() -> None:
    SGDPlus()


@pytest.mark.matrix
def test_only_the_thread_that_traces_a_loop_is_lowered() -> None:
    seen = []

    def look() -> None:
        seen.append(tracing.is_active())

    with tracing.active(tf.constant(1)):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
    look()
    assert seen == [False, True, False]


def test_two_threads_do_not_share_a_trace() -> None:
    """What is noted before any trace is open is this thread's, too."""
    seen: list[Any] = []

    def look() -> None:
        seen.append(tracing.now.views)
        tracing.now.views[1] = None, None
        with tracing.answering(lambda *_: None) as others:
            seen.append(others)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    theirs, their_others, ours, our_others = seen
    assert ours is not theirs and our_others is not their_others
    assert not tracing.now.others and not tracing.now.errors
    assert tracing.now.views.pop(1) and not tracing.now.views


def test_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.SWITCH, "0")
    with tracing.active(tf.constant(1)):
        assert not tracing.is_active()


def test_uninstall_restores_kerass_functions() -> None:
    def functions() -> list[Any]:
        places = keras_optimizer.lowered_functions()
        return [getattr(module, name) for name, module in places.items()]

    ours = functions()
    hooks.uninstall()
    theirs = functions()
    SGDPlus()
    again = functions()
    assert [f.__wrapped__ for f in ours] == theirs
    assert [f.__wrapped__ for f in again] == theirs


@pytest.mark.parametrize(("jit_compile", "used"), [("auto", True), (False, False)])
def test_a_loop_is_lowered_where_xla_compiles_it(
    jit_compile: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    convolved = pooled.convolved

    def spy(*args: Any) -> Any:
        calls.append(args)
        return convolved(*args)

    monkeypatch.setattr(pooled, "convolved", spy)
    model = _cnn()
    model.compile(SGDPlus(jit_compile=jit_compile), "mse")
    model.fit(np.ones((4, 10, 10, 1)), np.ones((4, 3)), verbose=0)
    assert bool(calls) is used


def _cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(24, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.25, seed=1),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("group_size", matrix(1, 4))
def test_model_equals_keras(group_size: int, engagements: list[str]) -> None:
    # In float32 rounding can decide where a gradient goes, at a ReLU or a maximum, and
    # kernels round differently on other processors. So the test runs in float64.
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 10, 10, 1))
    y = rng.normal(size=(40, 3))
    pair = train_pair(
        _cnn,
        x,
        y,
        sgd={"learning_rate": 0.005, "momentum": 0.9},
        plus={"order": "given", "examples_per_update": group_size},
        compile={"loss": "mse", "jit_compile": True},
        our_fit={"batch_size": 20},
        their_fit={"batch_size": group_size, "shuffle": False},
        our_compile={"jit_compile": "auto"},
    )
    assert_engaged(pair, engagements, len(x) // group_size)
    assert_same(pair, tolerance=1e-12, logs=1e-12)
