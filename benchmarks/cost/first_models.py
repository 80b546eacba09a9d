"""Models of `firstcall` that are no workloads of `speed`.

- `mobilenetv2-96-frozen`: MobileNetV2 on images of 96 x 96 x 3, frozen, and a new head
  of ten classes, as people fine-tune it.
- `critic`: two convolutions of a WGAN's critic on images of 28 x 28. Its loss has the
  gradient penalty of Gulrajani et al. (2017, https://arxiv.org/abs/1704.00028), so its
  weights are differentiated twice.
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


FIRST_MODELS = {
    "mobilenetv2-96-frozen": FirstModel(
        lambda: network("MobileNetV2", 96, True, _CLASSES),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        (96, 96, 3),
    ),
    "critic": FirstModel(_critic, None, (28, 28, 1)),
}
