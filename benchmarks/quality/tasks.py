"""The tasks: data, a small network, and the metric of its quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers, ops

from benchmarks.quality.datasets import IMAGES, Data, characters, flights, mnist, text


@dataclass(frozen=True)
class Task:
    """Data, a network, and the metric of its quality.

    The search for a learning rate trains for `epochs` (three times as many at batch
    size 256, where epochs are short); every run of every arm has `seconds`.
    """

    id: str
    text: str
    data: Callable[[], Data]
    model: Callable[[int], keras.Model]  # of a seed
    loss: str
    metric: str  # Keras's name of it; "" is the loss
    unit: str
    short: tuple[str, str]  # names of the task and of its quality in a small table
    step: float  # to which goals are rounded
    epochs: int
    seconds: float
    batch_size: int = 1_024  # of SGDPlus, where it changes the time only
    higher_is_better: bool = True
    scale: float = 1.0  # from Keras's metric to the unit

    @property
    def best_of(self) -> Callable[..., float]:
        """`max` or `min`: which of several values of the metric is best."""
        return max if self.higher_is_better else min

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value is at least as good as a goal."""
        return value >= goal if self.higher_is_better else value <= goal


def mlp(seed: int) -> keras.Model:
    """784-128-10, ReLU."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dense(10, "softmax"),
        ]
    )


def cnn(seed: int) -> keras.Model:
    """Two 3 x 3 convolutions (16, 32), each with max-pooling, and a Dense layer."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, "softmax"),
        ]
    )


def tabular(seed: int) -> keras.Model:
    """features-64-32-1, ReLU."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((flights().train[0].shape[1],)),
            layers.Dense(64, "relu"),
            layers.Dense(32, "relu"),
            layers.Dense(1),
        ]
    )


def transformer(seed: int) -> keras.Model:
    """One causal pre-norm block, 32 wide, 4 heads, over 32 characters."""
    keras.utils.set_random_seed(seed)
    width, letters = 32, len(set(text()))
    tokens = keras.Input((32,), dtype="int32")
    h = layers.Embedding(letters, width)(tokens)
    h = h + layers.Embedding(32, width)(ops.arange(32))
    z = layers.LayerNormalization()(h)
    h = h + layers.MultiHeadAttention(4, width // 4)(z, z, use_causal_mask=True)
    z = layers.LayerNormalization()(h)
    h = h + layers.Dense(width)(layers.Dense(4 * width, "relu")(z))
    h = layers.LayerNormalization()(h)
    return keras.Model(tokens, layers.Dense(letters, "softmax")(h))


_CLASSES = "sparse_categorical_crossentropy"
TASKS = {
    task.id: task
    for task in (
        Task(
            "mlp",
            f"MLP 784-128-10, {IMAGES} images of MNIST",
            mnist,
            mlp,
            _CLASSES,
            "accuracy",
            "test accuracy",
            ("MLP", "accuracy"),
            step=0.01,
            epochs=12,
            seconds=5,
        ),
        Task(
            "cnn",
            f"CNN, {IMAGES} images of MNIST",
            mnist,
            cnn,
            _CLASSES,
            "accuracy",
            "test accuracy",
            ("CNN", "accuracy"),
            step=0.01,
            epochs=6,
            seconds=8,
        ),
        Task(
            "flights",
            "MLP 132-64-32-1, delays of 32,768 flights",
            flights,
            tabular,
            "huber",
            "mae",
            "mean absolute test error (minutes)",
            ("flights", "error in minutes"),
            step=0.05,
            epochs=4,
            seconds=9,
            batch_size=8_192,
            higher_is_better=False,
            scale=30.0,
        ),
        Task(
            "text",
            "Causal transformer, 1,536 sequences of 32 characters",
            characters,
            transformer,
            _CLASSES,
            "",
            "test loss (nats per character)",
            ("transformer", "loss in nats"),
            step=0.05,
            epochs=6,
            seconds=13,
            higher_is_better=False,
        ),
    )
}
