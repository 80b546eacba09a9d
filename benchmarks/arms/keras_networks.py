"""The benchmark's networks as Keras models (`workloads` describes them)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from benchmarks.arms.workloads import Workload


def build(workload: Workload) -> Any:
    """The seeded, uncompiled model of a workload."""
    keras.utils.set_random_seed(0)
    return _NETWORKS[workload.network](workload.sizes)


def loss(workload: Workload) -> Any:
    """The loss object or name that `compile` takes."""
    if workload.loss == "mse":
        return "mse"
    # From logits: every peer fuses the softmax with the loss.
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _dense(sizes: tuple[int, ...]) -> Any:
    hidden = [layers.Dense(size, activation="relu") for size in sizes[1:-1]]
    return keras.Sequential(
        [keras.Input((sizes[0],)), *hidden, layers.Dense(sizes[-1])]
    )


def _cnn(sizes: tuple[int, ...]) -> Any:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(sizes[0], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(sizes[1], 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(sizes[2]),
        ]
    )


def _conv_bn_dropout(sizes: tuple[int, ...]) -> Any:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(sizes[0], 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25, seed=1),  # other masks than a peer's: not comparable
            layers.Dense(sizes[1]),
        ]
    )


def _depthwise(sizes: tuple[int, ...]) -> Any:
    same = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(sizes[0], 3, 2, **same),
            layers.DepthwiseConv2D(3, **same),
            layers.Conv2D(sizes[1], 1, **same),
            layers.GlobalAveragePooling2D(),
            layers.Dense(sizes[2]),
        ]
    )


def _lstm(sizes: tuple[int, ...]) -> Any:
    return keras.Sequential(
        [keras.Input((20, 8)), layers.LSTM(sizes[0]), layers.Dense(sizes[1])]
    )


@keras.saving.register_keras_serializable("benchmarks")
class _Positions(layers.Layer):
    """Adds a learnt embedding of each position."""

    # (examples, tokens, width) + (tokens, width). Keras itself has no such layer.

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=input_shape[1:], name="positions")

    def call(self, x: Any) -> Any:
        return x + self.table


def _transformer(sizes: tuple[int, ...]) -> Any:
    vocabulary, length, width, heads, blocks = sizes
    inputs = keras.Input((length,), dtype="int32")
    x = _Positions()(layers.Embedding(vocabulary, width)(inputs))
    for _ in range(blocks):
        normed = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = x + attention(normed, normed, use_causal_mask=True)
        normed = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(4 * width, "relu")(normed))
    return keras.Model(inputs, layers.Dense(vocabulary)(layers.LayerNormalization()(x)))


def _embedding_bag(sizes: tuple[int, ...]) -> Any:
    return keras.Sequential(
        [
            keras.Input((20,), dtype="int32"),
            layers.Embedding(sizes[0], sizes[1]),
            layers.GlobalAveragePooling1D(),
            layers.Dense(sizes[2]),
        ]
    )


_NETWORKS = {
    "dense": _dense,
    "cnn": _cnn,
    "conv_bn_dropout": _conv_bn_dropout,
    "depthwise": _depthwise,
    "lstm": _lstm,
    "transformer": _transformer,
    "embedding_bag": _embedding_bag,
}
