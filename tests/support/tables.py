"""Tests of embedding tables share these ids, labels and models."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

ROWS, WIDTH, LENGTH, UPDATES = 1_100, 8, 7, 500
DECAY = keras.optimizers.schedules.ExponentialDecay
MOMENTUM = {"momentum": 0.9}
ALL = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0625}


def ids(count: int = UPDATES, seed: int = 0) -> np.ndarray:
    """(count, LENGTH) ids: a few that come often, many that come once, also twice."""
    rng = np.random.default_rng(seed)
    return (rng.zipf(1.3, size=(count, LENGTH)) % ROWS).astype("int32")


def labels(count: int = UPDATES) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 4, count).astype("int32")


def embedding(**settings: Any) -> Any:
    return layers.Embedding(ROWS, WIDTH, **settings)


def bag(**settings: Any) -> keras.Model:
    stack = [embedding(**settings), layers.GlobalAveragePooling1D(), layers.Dense(4)]
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])


def two() -> keras.Model:
    inputs = [keras.Input((LENGTH,), dtype="int32") for _ in range(2)]
    rows = [embedding()(each) for each in inputs]
    pooled = [layers.GlobalAveragePooling1D()(each) for each in rows]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(pooled)))


def headed(layer: Any) -> keras.Model:
    """A layer on ids, and a Dense one."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(inputs, layers.Dense(4)(layer(inputs)))


class Lookup(layers.Layer):
    """A table that is no Embedding."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(ROWS, WIDTH))

    def call(self, ids: Any) -> Any:
        return keras.ops.mean(keras.ops.take(self.rows, ids, axis=0), axis=1)


class WithTable(layers.Layer):
    """A layer with an Embedding in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = embedding()

    def build(self, shape: Any) -> None:
        self.table.build()
