"""Linear models: SGDPlus on a Keras layer beside scikit-learn's SGD estimators.

`python -m benchmarks linear`: the same coefficients after 5 epochs when both visit the
rows in the same order (float64), and the time of an epoch (float32, shuffled).

Their formulae differ, and so the arguments do: scikit-learn's `alpha` is Keras's
decoupled `weight_decay` (both shrink w by `1 - learning_rate * alpha` at each update,
not the intercept); its squared loss is half of Keras's, so SGDPlus gets half the rate;
its one-versus-rest classifier takes each class by itself, where Keras averages over the
outputs, so SGDPlus gets the rate times their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.quality.datasets import flights
from benchmarks.shared import command, storage
from benchmarks.shared.finding import Finding, Stored
from keras_sgd_plus import SGDPlus

EPOCHS, REPEATS = 5, 5
WAYS = {  # to train an epoch, and their names in the table
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


def _scaled(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # here: other studies of this room go without

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    deviation = x.std(axis=0)  # zero where a pixel of the digits never changes
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1), y


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    x, y = _scaled("diabetes")
    return x, (y - y.mean()) / y.std()


def _flights() -> tuple[np.ndarray, np.ndarray]:
    x, y = flights().train
    return x.astype("float64"), y[:, 0].astype("float64")


PROBLEMS = (
    Problem("breast cancer, 569 x 30", lambda: _scaled("breast_cancer"), "classes"),
    Problem("digits, 1,797 x 64", lambda: _scaled("digits"), "classes", 10),
    Problem("diabetes, 442 x 10", _diabetes, "values"),
    Problem("flights, 32,768 x 132", _flights, "values"),
)


def _theirs(problem: Problem, epochs: int, shuffle: bool) -> Any:
    """scikit-learn's estimator."""
    from sklearn.linear_model import SGDClassifier, SGDRegressor

    make = SGDClassifier if problem.kind == "classes" else SGDRegressor
    loss = "log_loss" if problem.kind == "classes" else "squared_error"
    return make(
        loss=loss,
        penalty="l2",
        alpha=ALPHA,
        learning_rate="constant",
        eta0=RATE,
        max_iter=epochs,
        tol=None,  # no early end
        shuffle=shuffle,
        random_state=0,
    )


def _ours(problem: Problem, features: int, order: str, dtype: str) -> keras.Model:
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


def _targets(problem: Problem, y: np.ndarray) -> np.ndarray:
    """A column per output: one-hot for several classes."""
    if problem.outputs > 1:
        return (y[:, None] == np.arange(problem.outputs)).astype("float64")
    return y.astype("float64")[:, None]


def difference(problem: Problem) -> tuple[float, float]:
    """Largest difference of a coefficient in the same order, and the largest one."""
    x, y = problem.data()
    estimator = _theirs(problem, EPOCHS, shuffle=False).fit(x, y)
    fit = {"batch_size": len(x), "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # else fit rounds the data, Keras the rate
    try:
        model = _ours(problem, x.shape[1], "given", "float64")
        model.fit(x, _targets(problem, y), **fit)
    finally:
        keras.config.set_floatx(before)
    kernel, bias = model.get_weights()
    expected = np.append(np.atleast_2d(estimator.coef_).T, [estimator.intercept_], 0)
    found = np.append(kernel, bias[None], 0)
    return float(abs(found - expected).max()), float(abs(expected).max())


def _epoch_times(problem: Problem) -> dict[str, list[float]]:
    """Seconds per epoch of SGDPlus and of scikit-learn, float32 and shuffled all.

    SGDPlus gets arrays, and the same as a dataset of one element.
    """
    x, y = problem.data()
    small = x.astype("float32")
    model = _ours(problem, x.shape[1], "reshuffle", "float32")
    labels = y if problem.kind == "classes" else y.astype("float32")
    y_small = _targets(problem, y).astype("float32")
    one = tf.data.Dataset.from_tensors((small, y_small))
    epochs = 30  # a call of fit costs as much as some epochs
    fit = {"epochs": epochs, "shuffle": False, "verbose": 0}
    ways: dict[str, Callable[[], Any]] = {
        "arrays": lambda: model.fit(small, y_small, batch_size=len(x), **fit),
        "dataset": lambda: model.fit(one, **fit),
        "theirs": lambda: _theirs(problem, epochs, shuffle=True).fit(small, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, train in ways.items():
            start = time.perf_counter()
            train()
            if repeat:  # the first compiles
                times[name].append((time.perf_counter() - start) / epochs)
    return times


@dataclass(frozen=True)
class Compared(Finding):
    """The largest difference of a coefficient, beside the largest coefficient."""

    problem: str
    difference: float
    largest: float

    @property
    def missed(self) -> bool:
        """Whether the two estimators learn other coefficients."""
        return self.difference > BOUND * self.largest


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Yields the difference of each problem; writes JSON with the times."""
    command.options("linear", __doc__, arguments)
    results = {}
    for problem in PROBLEMS:
        apart, largest = difference(problem)
        times = _epoch_times(problem)
        results[problem.id] = {"difference": apart, "largest": largest, **times}
        yield Compared(problem.id, apart, largest)
    storage.write("linear", results)
    yield Stored("linear")
