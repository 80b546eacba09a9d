"""The tasks of `search`: those on which its rule was chosen, and those held out.

Network, size, epochs and batch size of a task that is held out were fixed before the
rule of `find_learning_rate` was chosen; nothing was chosen on it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from benchmarks.quality import problems, tasks
from benchmarks.quality.datasets import (
    Data,
    characters,
    cut,
    flights,
    flights_table,
    mnist,
)

_CLASSES = "sparse_categorical_crossentropy"


@dataclass(frozen=True)
class SearchTask:
    """Data, a network and how long it trains.

    The error is 1 - accuracy, or `metric` where that is another one ("" is the loss).
    """

    id: str
    text: str
    data: Callable[[], Data]
    model: Callable[[int], keras.Model]  # of a seed
    epochs: int
    is_held_out: bool = False
    loss: str = _CLASSES
    metric: str = "accuracy"
    batch_size: int = 1_000  # of SGDPlus
    momentum: float = 0.0  # of SGDPlus


@functools.cache
def departures() -> Data:
    """Departures per airport of New York, day and hour: 6,000, 2,000, 4,000 counts.

    Features: the hour, the weekday and the month on circles, and the airport.
    """
    import pandas as pd

    table = flights_table()
    keys = ["origin", "month", "day", "hour"]
    counts = table.groupby(keys).size().reset_index(name="count")
    dates = pd.to_datetime(counts.assign(year=2013)[["year", "month", "day"]])
    angles = (counts["hour"] / 24, dates.dt.day_of_week / 7, counts["month"] / 12)
    circles = [f(2 * np.pi * a) for a in angles for f in (np.sin, np.cos)]
    airports = pd.get_dummies(counts["origin"])
    x = np.column_stack([*circles, counts["hour"] / 12 - 1, airports])
    y = counts["count"].to_numpy("float32")[:, None]
    return cut(x.astype("float32"), y, train=6_000, validation=2_000, test=4_000)


@functools.cache
def seconds_aloft() -> Data:
    """Seconds in the air, from 1,200 to 41,700, of 10,000, 4,000 and 8,000 flights."""
    import pandas as pd

    table = flights_table().dropna(subset=["air_time"])
    names = pd.get_dummies(table[["carrier", "origin", "dest"]])
    columns = [table["distance"] / 1_000, table["month"] / 12, table["hour"] / 24]
    x = np.column_stack([*columns, names]).astype("float32")
    y = (table["air_time"].to_numpy("float32") * 60)[:, None]
    return cut(x, y, train=10_000, validation=4_000, test=8_000)


@functools.cache
def late_aircraft() -> Data:
    """Whether a flight is 15 minutes late, by ids alone: 20,000, 5,000, 10,000.

    Columns: the aircraft (of about 4,000), the destination, the carrier, the hour.
    """
    table = flights_table().dropna(subset=["arr_delay", "tailnum"])
    columns, start = [], 0
    for name in ("tailnum", "dest", "carrier", "hour"):
        codes = table[name].astype("category").cat.codes.to_numpy("int32")
        columns.append(codes + start)
        start += int(codes.max()) + 1
    y = (table["arr_delay"] > 15).to_numpy("int32")
    x = np.column_stack(columns)
    return cut(x, y, train=20_000, validation=5_000, test=10_000)


_PACKAGES = ("keras", "numpy", "sklearn", "scipy", "pandas")
_WORDS, _PER_PACKAGE = 2_000, 900


def _docstrings(package: str) -> list[str]:
    # Of functions and classes in the sources of an installed package, each once.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"Install the package: python -m pip install {package}")
    found = []
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "test" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 80:
                    found.append(text[:400])
    unique = list(dict.fromkeys(found))
    rows = np.random.default_rng(0).permutation(len(unique))[:_PER_PACKAGE]
    return [unique[i] for i in rows]


@functools.cache
def docstrings() -> Data:
    """Docstrings of five Python packages as bags of 2,000 words: which package?"""
    texts = [(text, i) for i, p in enumerate(_PACKAGES) for text in _docstrings(p)]
    words = [set(re.findall(r"[a-z]{2,}", text.lower())) for text, _ in texts]
    counts = Counter(word for each in words for word in sorted(each))
    names = set(_PACKAGES) | {"np", "pd", "sp"}
    kept = [w for w, _ in counts.most_common(_WORDS + len(names)) if w not in names]
    places = {word: i for i, word in enumerate(kept[:_WORDS])}
    x = np.zeros((len(texts), _WORDS), "float32")
    for row, each in enumerate(words):
        x[row, [places[word] for word in each if word in places]] = 1
    y = np.array([label for _, label in texts], "int32")
    test = len(texts) // 4
    return cut(x, y, train=len(texts) - test - 500, validation=500, test=test)


@functools.cache
def remembered() -> Data:
    """20 random digits, of which the first is asked for: 4,000, 1,000, 2,000."""
    x = np.random.default_rng(2).integers(0, 4, (7_000, 20)).astype("int32")
    return cut(x, x[:, 0], train=4_000, validation=1_000, test=2_000)


@functools.cache
def parity() -> Data:
    """Rows of 10 signs, labelled by the product of the first 3: 4,000, 1,000, 2,000.

    No sign alone tells anything of the label: training begins on a plateau.
    """
    x = np.random.default_rng(3).choice([-1.0, 1.0], (7_000, 10)).astype("float32")
    y = (x[:, :3].prod(axis=1) > 0).astype("int32")
    return cut(x, y, train=4_000, validation=1_000, test=2_000)


@functools.cache
def friedman() -> Data:
    """scikit-learn's function of Friedman, times 1,000: 4,000, 1,000, 2,000 rows."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(7_000, noise=1.0, random_state=0)
    y = 1_000 * y.astype("float32")[:, None]
    return cut(x.astype("float32"), y, train=4_000, validation=1_000, test=2_000)


def friedman_mlp(seed: int) -> keras.Model:
    """10-32-1, ReLU."""
    keras.utils.set_random_seed(seed)
    hidden, output = layers.Dense(32, "relu"), layers.Dense(1)
    return keras.Sequential([keras.Input((10,)), hidden, output])


def parity_mlp(seed: int) -> keras.Model:
    """10-32-2, ReLU."""
    keras.utils.set_random_seed(seed)
    hidden, output = layers.Dense(32, "relu"), layers.Dense(2, "softmax")
    return keras.Sequential([keras.Input((10,)), hidden, output])


def poisson(seed: int) -> keras.Model:
    """features-32-1, tanh and an exponential."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((departures().train[0].shape[1],)),
            layers.Dense(32, "tanh"),
            layers.Dense(1, "exponential"),
        ]
    )


def aloft(seed: int) -> keras.Model:
    """features-32-1, ReLU."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((seconds_aloft().train[0].shape[1],)),
            layers.Dense(32, "relu"),
            layers.Dense(1),
        ]
    )


def tanh_mlp(seed: int) -> keras.Model:
    """784-64-10, tanh."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(64, "tanh"),
            layers.Dense(10, "softmax"),
        ]
    )


def embeddings(seed: int) -> keras.Model:
    """A table of 16 numbers per id, four ids side by side, 32, 1."""
    keras.utils.set_random_seed(seed)
    size = int(max(x.max() for x, _ in (late_aircraft().train, late_aircraft().test)))
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(size + 200, 16),
            layers.Flatten(),
            layers.Dense(32, "relu"),
            layers.Dense(1, "sigmoid"),
        ]
    )


def words(seed: int) -> keras.Model:
    """2,000-32-5, ReLU."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((_WORDS,)),
            layers.Dense(32, "relu"),
            layers.Dense(len(_PACKAGES), "softmax"),
        ]
    )


def normalized_cnn(seed: int) -> keras.Model:
    """Two 3 x 3 convolutions with GroupNormalization and pooling, and a Dense layer."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(8, 3, strides=2),
            layers.GroupNormalization(4),
            layers.ReLU(),
            layers.Conv2D(16, 3, strides=2),
            layers.GroupNormalization(4),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, "softmax"),
        ]
    )


def memory(seed: int) -> keras.Model:
    """A GRU of 24 units over 20 digits, each a vector of 8."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((20,), dtype="int32"),
            layers.Embedding(4, 8),
            layers.GRU(24),
            layers.Dense(4, "softmax"),
        ]
    )


_MINUTES = {"loss": "huber", "metric": "mae"}
DEVELOPMENT = (
    SearchTask(
        "digits",
        "MLP, digits of 0 to 16, not scaled",
        problems.unscaled_digits,
        problems.digits_mlp,
        epochs=15,
        batch_size=600,
    ),
    SearchTask("mlp", "MLP, MNIST", mnist, tasks.mlp, epochs=10),
    SearchTask("logistic", "logistic regression", mnist, problems.logistic, epochs=10),
    SearchTask(
        "noise",
        "MLP, a fifth of the labels wrong",
        problems.noisy_mnist,
        tasks.mlp,
        epochs=10,
    ),
    SearchTask("gru", "GRU over rows of MNIST", mnist, problems.gru, epochs=5),
    SearchTask("cnn", "CNN, MNIST", mnist, tasks.cnn, epochs=3),
    SearchTask(
        "flights",
        "MLP, delays of flights",
        flights,
        tasks.tabular,
        epochs=3,
        batch_size=4_096,
        **_MINUTES,
    ),
    SearchTask(
        "friedman",
        "MLP, targets of thousands, squared error",
        friedman,
        friedman_mlp,
        epochs=10,
        loss="mse",
        metric="mae",
    ),
    SearchTask("parity", "MLP, parity of 3 signs of 10", parity, parity_mlp, epochs=10),
)
_held_out = functools.partial(SearchTask, is_held_out=True)
HELD_OUT = (
    _held_out(
        "poisson",
        "MLP, counts of departures, Poisson loss",
        departures,
        poisson,
        epochs=10,
        loss="poisson",
        metric="mae",
    ),
    _held_out(
        "aloft",
        "MLP, seconds in the air, squared error",
        seconds_aloft,
        aloft,
        epochs=5,
        loss="mse",
        metric="mae",
    ),
    _held_out(
        "momentum", "MLP, tanh, momentum 0.9", mnist, tanh_mlp, epochs=10, momentum=0.9
    ),
    _held_out(
        "transformer",
        "transformer over characters",
        characters,
        tasks.transformer,
        epochs=5,
        metric="",
        batch_size=512,
    ),
    _held_out(
        "embeddings",
        "MLP on embeddings, late flights by ids",
        late_aircraft,
        embeddings,
        epochs=4,
        loss="binary_crossentropy",
        metric="",
        batch_size=4_096,
    ),
    _held_out("words", "MLP, docstrings as bags of words", docstrings, words, epochs=8),
    _held_out("groupnorm", "CNN, GroupNormalization", mnist, normalized_cnn, epochs=5),
    _held_out("memory", "GRU that has to remember", remembered, memory, epochs=10),
)
SEARCH_TASKS = {task.id: task for task in (*DEVELOPMENT, *HELD_OUT)}
