"""Tests of saved state share this linear model in training, and its state."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_sgd_plus import SGDPlus
from tests.support.twins import dense_data, linear_model

SGD = keras.optimizers.SGD
MOMENTUM: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9}


def fit(model: Any, first: int, last: int, batch_size: int) -> None:
    x, y = dense_data()
    batch = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    model.fit(x[first:last], y[first:last], **batch)


def state_of(model: Any) -> list[np.ndarray]:
    """Weights, then the optimizer's variables."""
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


# Without XLA: these tests compare transferred state, others compare the loop.
PLAIN: dict[str, Any] = {"order": "given", "jit_compile": False}


def compiled(cls: type, seed: int = 1, **options: Any) -> Any:
    keras.utils.set_random_seed(seed)
    model = linear_model()
    options = {**MOMENTUM, **options, **(PLAIN if cls is SGDPlus else {})}
    # A loss object: Keras cannot read the name of one back from a whole-model .h5.
    model.compile(cls(**options), loss=keras.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    return model


def batch_size_of(model: Any) -> int:
    return 5 if isinstance(model.optimizer, SGDPlus) else 1
