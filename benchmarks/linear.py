"""Linear models: SGDPlus on a Keras layer beside scikit-learn's SGD estimators.

`python -m benchmarks linear`: the same coefficients after 5 epochs when both walk the
rows in the same order (float64), and the time of an epoch (float32, shuffled).

What differs in the formulae, and how it is said to SGDPlus: scikit-learn's `alpha` is
Keras's decoupled `weight_decay` (both shrink w by `1 - learning_rate * alpha` at each
update, not the intercept); its squared loss is half of Keras's, so the rate is halved;
its one-versus-rest classifier minds each class by itself, where Keras averages over the
outputs, so the rate is multiplied by their number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn import datasets
from sklearn.linear_model import SGDClassifier, SGDRegressor

from benchmarks import record
from benchmarks.datasets import flights
from keras_sgd_plus import SGDPlus

EPOCHS, REPEATS = 5, 5
WAYS = {  # to train an epoch, and what they are called
    "arrays": "SGDPlus, arrays",
    "dataset": "SGDPlus, a dataset of one element",
    "theirs": "scikit-learn",
}
BOUND = 1e-12  # of a difference, relative to the largest coefficient
# Keras rounds `weight_decay` to float32, so alpha, and a tenth of it, are exact there.
RATE, ALPHA = 0.001, 10 * 2**-10


@dataclass(frozen=True)
class Problem:
    """Data for both; `outputs` is the number of columns of the Keras layer."""

    id: str
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    kind: str  # "classes" or "values"
    outputs: int = 1


def _scaled(load: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    x, y = load(return_X_y=True)
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1), y


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    x, y = _scaled(datasets.load_diabetes)
    return x, (y - y.mean()) / y.std()


def _flights() -> tuple[np.ndarray, np.ndarray]:
    x, y = flights().train
    return x.astype("float64"), y[:, 0].astype("float64")


PROBLEMS = (
    Problem(
        "breast cancer, 569 x 30",
        lambda: _scaled(datasets.load_breast_cancer),
        "classes",
    ),
    Problem("digits, 1,797 x 64", lambda: _scaled(datasets.load_digits), "classes", 10),
    Problem("diabetes, 442 x 10", _diabetes, "values"),
    Problem("flights, 32,768 x 132", _flights, "values"),
)


def theirs(problem: Problem, epochs: int, shuffle: bool) -> Any:
    """scikit-learn's estimator."""
    make = SGDClassifier if problem.kind == "classes" else SGDRegressor
    loss = "log_loss" if problem.kind == "classes" else "squared_error"
    return make(
        loss=loss,
        penalty="l2",
        alpha=ALPHA,
        learning_rate="constant",
        eta0=RATE,
        max_iter=epochs,
        tol=None,
        shuffle=shuffle,
        random_state=0,
    )


def ours(problem: Problem, features: int, order: str, dtype: str) -> keras.Model:
    """A Dense layer that starts at zero, compiled with SGDPlus."""
    model = keras.Sequential(
        [
            keras.Input((features,), dtype=dtype),
            keras.layers.Dense(
                problem.outputs, kernel_initializer="zeros", dtype=dtype
            ),
        ]
    )
    classes = problem.kind == "classes"
    optimizer = SGDPlus(
        RATE * problem.outputs if classes else RATE / 2,
        weight_decay=ALPHA / problem.outputs if classes else 2 * ALPHA,
        order=order,
        seed=0,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(
        optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True) if classes else "mse",
    )
    return model


def targets(problem: Problem, y: np.ndarray) -> np.ndarray:
    """A column per output: one-hot for several classes."""
    if problem.outputs > 1:
        return (y[:, None] == np.arange(problem.outputs)).astype("float64")
    return y.astype("float64")[:, None]


def difference(problem: Problem) -> tuple[float, float]:
    """Largest difference of a coefficient in the same order, and the largest one."""
    x, y = problem.data()
    estimator = theirs(problem, EPOCHS, shuffle=False).fit(x, y)
    fit = {"batch_size": len(x), "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # else fit rounds the data, Keras the rate
    try:
        model = ours(problem, x.shape[1], "given", "float64")
        model.fit(x, targets(problem, y), **fit)
    finally:
        keras.config.set_floatx(before)
    kernel, bias = model.get_weights()
    expected = np.append(np.atleast_2d(estimator.coef_).T, [estimator.intercept_], 0)
    found = np.append(kernel, bias[None], 0)
    return float(abs(found - expected).max()), float(abs(expected).max())


def epoch_times(problem: Problem) -> dict[str, list[float]]:
    """Seconds per epoch of SGDPlus and of scikit-learn, float32 and shuffled all.

    SGDPlus gets arrays, and the same as a dataset of one element.
    """
    x, y = problem.data()
    small = x.astype("float32")
    model = ours(problem, x.shape[1], "reshuffle", "float32")
    labels = y if problem.kind == "classes" else y.astype("float32")
    y_small = targets(problem, y).astype("float32")
    one = tf.data.Dataset.from_tensors((small, y_small))
    epochs = 30  # a call of fit costs what some epochs do
    fit = {"epochs": epochs, "shuffle": False, "verbose": 0}
    ways: dict[str, Callable[[], Any]] = {
        "arrays": lambda: model.fit(small, y_small, batch_size=len(x), **fit),
        "dataset": lambda: model.fit(one, **fit),
        "theirs": lambda: theirs(problem, epochs, shuffle=True).fit(small, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, train in ways.items():
            start = time.perf_counter()
            train()
            if repeat:  # the first compiles
                times[name].append((time.perf_counter() - start) / epochs)
    return times


def table(results: dict[str, Any]) -> str:
    """A row per problem."""
    head = ["data", "largest difference", "largest coefficient", *WAYS.values()]
    rows = []
    for name, found in results.items():
        times = [statistics.median(found[k]) * 1e3 for k in WAYS]
        cells = [f"{found['difference']:.0e}", f"{found['largest']:.2g}"]
        rows.append([name, *cells, *(f"{ms:.2f} ms" for ms in times)])
    return record.markdown(head, rows)


def main(arguments: list[str] | None = None) -> int:
    """Compares, prints a table, writes JSON; 1 if coefficients differ."""
    del arguments
    results = {}
    for problem in PROBLEMS:
        apart, largest = difference(problem)
        times = epoch_times(problem)
        results[problem.id] = {"difference": apart, "largest": largest, **times}
        print(f"  {problem.id}: {apart:.1e} of {largest:.2g}", flush=True)
    record.write("linear", results)
    whole = record.read("linear")
    print(f"\n{table(results)}\n\n{record.line(whole['environment'])}")
    far = [n for n, r in results.items() if r["difference"] > BOUND * r["largest"]]
    return 1 if far else 0
