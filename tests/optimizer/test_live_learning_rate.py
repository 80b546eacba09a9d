"""A rate that is assigned on a live optimizer is taken, or refused by its name."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus

NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[Any, type[Exception]]] = [
    ("0.1", TypeError),
    (b"1", TypeError),
    (None, TypeError),
    (1j, TypeError),
    ([0.1], TypeError),
    (np.array([0.1, 0.2]), TypeError),
    (tf.constant([0.1]), TypeError),
    (tf.constant("0.1"), TypeError),
    (lambda updates: 0.1 * updates, TypeError),
    (NAN, ValueError),
    (-INF, ValueError),
    (np.float32(NAN), ValueError),
    (tf.constant(INF), ValueError),
]


def _ids(values: list[Any]) -> list[str]:
    return [f"{i}-{type(value).__name__}" for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("value", "error"), REFUSED, ids=_ids([value for value, _ in REFUSED])
)
def test_refused(value: Any, error: type[Exception]) -> None:
    optimizer: Any = SGDPlus(0.25)
    with pytest.raises(error, match="^`learning_rate` must be .*Use 0.01") as raised:
        optimizer.learning_rate = value
    assert type(raised.value) is error
    assert "Received: learning_rate=" in str(raised.value)
    assert float(optimizer.learning_rate) == 0.25


TAKEN: list[Any] = [
    *(0.5, 1, -1, True, np.float32(0.5), np.int64(2), np.array(0.5)),
    *(tf.constant(0.5), tf.Variable(0.5), keras.Variable(0.5)),
]


@pytest.mark.parametrize("value", TAKEN, ids=_ids(TAKEN))
def test_taken(value: Any) -> None:
    optimizer: Any = SGDPlus(0.25)
    optimizer.learning_rate = value
    assert float(optimizer.learning_rate) == float(value)


def test_taken_in_a_graph() -> None:
    optimizer: Any = SGDPlus(0.25)
    variable = tf.Variable(0.5)

    @tf.function(autograph=False)
    def halve() -> None:
        optimizer.learning_rate = variable
        optimizer.learning_rate = tf.convert_to_tensor(optimizer.learning_rate) / 2

    halve()
    assert float(optimizer.learning_rate) == 0.25
    variable.assign(3.0)
    halve()
    assert float(optimizer.learning_rate) == 1.5


def test_a_schedule_is_taken() -> None:
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    optimizer: Any = SGDPlus(0.25)
    optimizer.learning_rate = schedule
    assert float(optimizer.learning_rate) == 0.5
    optimizer = SGDPlus(schedule)
    with pytest.raises(TypeError, match="^`learning_rate` must be "):
        optimizer.learning_rate = "0.1"
    assert float(optimizer.learning_rate) == 0.5
