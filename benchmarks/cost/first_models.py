"""Models of `firstcall` that are no workloads of `speed`.

- `mobilenetv2-96-frozen`: MobileNetV2 on images of 96 x 96 x 3, frozen, and a new head
  of ten classes, as people fine-tune it.
- `critic`: two convolutions of a WGAN's critic on images of 28 x 28. Its loss has the
  gradient penalty of Gulrajani et al. (2017, https://arxiv.org/abs/1704.00028), so its
  weights are differentiated twice.
- `unet-32`: two levels down and up, with BatchNormalization and skip connections.
- `mixer-32`: patches of 4 x 4, then four blocks of depthwise and pointwise convolutions
  (ConvMixer, https://arxiv.org/abs/2201.09792).
- `transformer-2x64`: two blocks of attention on 32 tokens of 64 numbers.
- `bilstm-32`: two bidirectional LSTMs on sequences of 32.
- `convlstm-16`: a ConvLSTM2D on 5 images of 16 x 16.
- `resnet-1d-64`: three residual blocks of 1-d convolutions on sequences of 64.
- `restoration-32`: eight convolutions that add details to an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from benchmarks.cost.applications import network

_PENALTY, _CLASSES = 10.0, 10


class FirstModel(NamedTuple):
    """A model that is not compiled yet, its loss, and the shape of an example."""

    make: Callable[[], Any]
    loss: Any
    shape: tuple[int, ...]

    def compiled(self, optimizer: Any, **settings: Any) -> Any:
        """A new model."""
        model = self.make()
        model.compile(optimizer, self.loss, **settings)
        return model

    def data(self, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs, and classes; for the critic, whether an image is true."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(num_examples, *self.shape)).astype("float32")
        return x, rng.integers(0, _CLASSES if self.loss else 2, num_examples)


class Critic(keras.Sequential):
    """High for true images (1), low for others (0), with slopes near one."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any
    ) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            scores = self(x, training=True)
        slopes = tape.gradient(scores, x)
        ops = keras.ops
        if slopes is None:  # Keras asks for shapes alone
            slopes = ops.zeros_like(x)
        norms = ops.sqrt(ops.sum(slopes**2, axis=(1, 2, 3)) + 1e-12)
        signs = 1.0 - 2.0 * ops.cast(ops.reshape(y, (-1, 1)), "float32")
        return ops.mean(signs * y_pred) + _PENALTY * ops.mean((norms - 1.0) ** 2)


def _critic() -> Any:
    layers = keras.layers
    strided: dict[str, Any] = {"strides": 2, "padding": "same"}
    return Critic(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 5, **strided),
            layers.LeakyReLU(),
            layers.Conv2D(32, 5, **strided),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def _normalized(x: Any, channels: int, size: int = 3) -> Any:
    layers = keras.layers
    x = layers.Conv2D(channels, size, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _unet() -> Any:
    layers = keras.layers
    first = keras.Input((32, 32, 3))
    a = _normalized(_normalized(first, 16), 16)
    b = _normalized(_normalized(layers.MaxPooling2D()(a), 32), 32)
    c = _normalized(_normalized(layers.MaxPooling2D()(b), 64), 64)
    up = layers.Conv2DTranspose(32, 2, strides=2)(c)
    b = _normalized(_normalized(layers.Concatenate()([up, b]), 32), 32)
    up = layers.Conv2DTranspose(16, 2, strides=2)(b)
    a = _normalized(_normalized(layers.Concatenate()([up, a]), 16), 16)
    found = layers.GlobalAveragePooling2D()(layers.Conv2D(_CLASSES, 1)(a))
    return keras.Model(first, found)


def _mixer() -> Any:
    layers = keras.layers
    first = keras.Input((32, 32, 3))
    x = layers.Conv2D(64, 4, strides=4, activation="gelu")(first)
    x = layers.BatchNormalization()(x)
    for _ in range(4):
        mixed = layers.DepthwiseConv2D(5, padding="same", activation="gelu")(x)
        x = layers.Add()([layers.BatchNormalization()(mixed), x])
        x = layers.Conv2D(64, 1, activation="gelu")(x)
        x = layers.BatchNormalization()(x)
    return keras.Model(first, _head(layers.GlobalAveragePooling2D()(x)))


def _head(x: Any) -> Any:
    return keras.layers.Dense(_CLASSES)(x)


def _transformer() -> Any:
    layers = keras.layers
    first = x = keras.Input((32, 64))
    for _ in range(2):
        seen = layers.MultiHeadAttention(4, 16)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, seen]))
        inner = layers.Dense(64)(layers.Dense(128, activation="relu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, inner]))
    return keras.Model(first, _head(layers.GlobalAveragePooling1D()(x)))


def _bidirectional() -> Any:
    layers = keras.layers
    first = keras.Input((32, 16))
    x = layers.Bidirectional(layers.LSTM(32, return_sequences=True))(first)
    return keras.Model(first, _head(layers.Bidirectional(layers.LSTM(32))(x)))


def _convolutional_lstm() -> Any:
    layers = keras.layers
    first = keras.Input((5, 16, 16, 1))
    x = layers.ConvLSTM2D(16, 3, padding="same")(first)
    return keras.Model(first, _head(layers.GlobalAveragePooling2D()(x)))


def _residual() -> Any:
    layers = keras.layers
    first = keras.Input((64, 4))
    x = layers.Conv1D(32, 7, padding="same", activation="relu")(first)
    for _ in range(3):
        inner = layers.Conv1D(32, 3, padding="same", activation="relu")(x)
        inner = layers.Conv1D(32, 3, padding="same")(inner)
        x = layers.ReLU()(layers.Add()([x, inner]))
    return keras.Model(first, _head(layers.GlobalAveragePooling1D()(x)))


def _restoration() -> Any:
    layers = keras.layers
    first = x = keras.Input((32, 32, 3))
    for _ in range(8):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    restored = layers.Add()([first, layers.Conv2D(3, 3, padding="same")(x)])
    return keras.Model(first, _head(layers.Flatten()(restored)))


_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIRST_MODELS = {
    "mobilenetv2-96-frozen": FirstModel(
        lambda: network("MobileNetV2", 96, True, _CLASSES),
        _LOSS,
        (96, 96, 3),
    ),
    "critic": FirstModel(_critic, None, (28, 28, 1)),
    "unet-32": FirstModel(_unet, _LOSS, (32, 32, 3)),
    "mixer-32": FirstModel(_mixer, _LOSS, (32, 32, 3)),
    "transformer-2x64": FirstModel(_transformer, _LOSS, (32, 64)),
    "bilstm-32": FirstModel(_bidirectional, _LOSS, (32, 16)),
    "convlstm-16": FirstModel(_convolutional_lstm, _LOSS, (5, 16, 16, 1)),
    "resnet-1d-64": FirstModel(_residual, _LOSS, (64, 4)),
    "restoration-32": FirstModel(_restoration, _LOSS, (32, 32, 3)),
}
