"""The problems of `robustness`: data, a small network, and what it is scored by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from benchmarks.quality import tasks
from benchmarks.quality.datasets import IMAGES, Data, cut, flights, mnist
from benchmarks.quality.training import rate_at

HALF_DECADES = tuple(rate_at(place) for place in range(-8, 3))  # 0.0001 to 10
DECADES = HALF_DECADES[::2]
NOISE = 0.2  # of the labels


@dataclass(frozen=True)
class Problem:
    """Data and a network, and the grid on which it is trained.

    `rates` are those of SGD, plain and capped, and their averages; decay and clipping
    have the decades. `batch_size` divides the number of examples. `fractions` are the
    values of `max_loss_fraction`; with `search`, the first is taken, and that which is
    best on the validation part.
    """

    id: str
    text: str
    data: Callable[[], Data]
    model: Callable[[int], keras.Model]  # of a seed
    epochs: int
    seeds: int = 3
    rates: tuple[float, ...] = DECADES
    loss: str = "sparse_categorical_crossentropy"
    batch_size: int = 1_024  # the averages take the weights in once per batch
    fractions: tuple[float, ...] = (1.0,)
    search: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the score is an error in minutes, not an accuracy."""
        return self.loss == "huber"

    @property
    def near(self) -> float:
        """How far from the best a rate still counts as a good one."""
        return 0.5 if self.is_regression else 0.02

    @property
    def best_of(self) -> Callable[..., float]:
        """`max` or `min`: which of several scores is best."""
        return min if self.is_regression else max


@functools.cache
def unscaled_digits() -> Data:
    """scikit-learn's 1,797 digits, pixels from 0 to 16: 1,200, 200, 397."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = found.data.astype("float32"), found.target.astype("int32")
    return cut(x, y, train=1_200, validation=200, test=397)


@functools.cache
def noisy_mnist() -> Data:
    """MNIST with a fifth of the labels to train on replaced, each by another class.

    Validation and test have the right labels.
    """
    clean = mnist()
    x, y = clean.train
    rng = np.random.default_rng(1)
    wrong = rng.permutation(len(y))[: round(NOISE * len(y))]
    y = y.copy()
    y[wrong] = (y[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return Data(train=(x, y), validation=clean.validation, test=clean.test)


def digits_mlp(seed: int) -> keras.Model:
    """64-128-10, ReLU."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(10, "softmax")]
    )


def logistic(seed: int) -> keras.Model:
    """784-10, softmax."""
    keras.utils.set_random_seed(seed)
    layer = layers.Dense(10, "softmax")
    return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layer])


def gru(seed: int) -> keras.Model:
    """A GRU of 32 units over the 28 rows of an image, and a Dense layer."""
    keras.utils.set_random_seed(seed)
    output = layers.Dense(10, "softmax")
    return keras.Sequential([keras.Input((28, 28)), layers.GRU(32), output])


PROBLEMS = {
    problem.id: problem
    for problem in (
        Problem(
            "mlp",
            f"MLP 784-128-10, {IMAGES} images of MNIST",
            mnist,
            tasks.mlp,
            epochs=15,
            rates=HALF_DECADES,
        ),
        Problem(
            "digits",
            "MLP 64-128-10, 1,200 digits of 8 x 8 pixels from 0 to 16, not scaled",
            unscaled_digits,
            digits_mlp,
            epochs=15,
            rates=HALF_DECADES,
            batch_size=600,
        ),
        Problem(
            "flights",
            "MLP 132-64-32-1, delays of 32,768 flights, Huber loss",
            flights,
            tasks.tabular,
            epochs=4,
            seeds=2,
            loss="huber",
            batch_size=8_192,
            fractions=(1.0, 0.3, 0.1, 0.06, 0.03),
            search=True,
        ),
        Problem(
            "logistic",
            f"Logistic regression 784-10, {IMAGES} images of MNIST",
            mnist,
            logistic,
            epochs=10,
        ),
        Problem(
            "cnn",
            f"CNN, two convolutions, {IMAGES} images of MNIST",
            mnist,
            tasks.cnn,
            epochs=3,
            seeds=2,
            fractions=(1.0, 0.3),
        ),
        Problem(
            "gru",
            f"GRU of 32 units over the rows of {IMAGES} images of MNIST",
            mnist,
            gru,
            epochs=4,
            seeds=2,
        ),
        Problem(
            "noise",
            f"MLP 784-128-10, {IMAGES} images of MNIST, a fifth of the labels wrong",
            noisy_mnist,
            tasks.mlp,
            epochs=10,
            seeds=2,
            fractions=(1.0, 0.3),
        ),
    )
}
