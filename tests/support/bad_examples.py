"""Tests of examples that are not finite share these models and data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tests.support.twins import dense_data, dense_model

BAD = (0, 4, 5, 13)  # the first one, two in a row, and one in the second batch
NUM_EXAMPLES = 16
ROUNDING = 1e-5  # of the largest change; one update is a tenth of it and more


class Root(keras.layers.Layer):
    """Finite at zero, where its gradient is not."""

    def call(self, x: Any) -> Any:
        return keras.ops.sqrt(keras.ops.abs(x))


def dense() -> Any:
    return dense_model()


def root() -> Any:
    layers = [keras.layers.Dense(2, use_bias=False), Root(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((5,)), *layers])


def data(cause: str = "loss") -> tuple[Any, Any]:
    x, y = dense_data(NUM_EXAMPLES)
    if cause == "loss":
        x[0], y[4, 0], y[5, 1], y[13] = np.nan, -np.inf, np.nan, 3e38
    else:
        x[list(BAD)] = 0.0  # so that Root is at zero
    return x, y


def compiled(make: Callable[[], Any], optimizer: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def quiet_fit(model: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(*args, shuffle=False, verbose=0, **kwargs)
