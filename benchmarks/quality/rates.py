"""Scores of a problem by learning rate: plain, capped, clipped, averaged, decayed.

A model is compiled once per momentum and kind of optimizer; rates, weights, seeds and
fractions are assigned to the live one. One run gives two arms: at its end there
are the last weights, and the averages that `AverageWeights` has taken on the way, which
leaves the training as it is.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.quality import scores
from benchmarks.quality.problems import DECADES, Problem
from benchmarks.quality.training import restart
from keras_sgd_plus import AverageWeights, SGDPlus

MOMENTA = (0.0, 0.9)
PLAIN, AVERAGED, DECAYED, CLIPPED = "plain", "averaged", "linear decay", "clipped"
NORM = 1.0  # the bound of all gradients together, where they are clipped
_SEARCH_RATE, _SEARCH_SEEDS = 1.0, (100, 101, 102)


def capped(fraction: float, averaged: bool = False) -> str:
    """The name of an arm with `max_loss_fraction`."""
    return f"capped {fraction:g}{', averaged' * averaged}"


class _Last(keras.callbacks.Callback):
    """Keeps the last weights of training, before the averages take their place."""

    weights: list[np.ndarray]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del logs
        params: Any = self.params
        if batch == params["steps"] - 1:
            self.weights = self.model.get_weights()


class _Decay(keras.callbacks.Callback):
    """Lowers the rate linearly to zero over the run, batch by batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        params: Any = self.params
        self.model.optimizer.learning_rate = self.rate * (1 - batch / params["steps"])


class Runner:
    """A compiled model of a problem, which trains again and again."""

    def __init__(self, problem: Problem, optimizer: SGDPlus) -> None:
        keras.backend.clear_session()  # else earlier models stay in memory
        gc.collect()
        self.problem, self.model = problem, problem.model(0)
        self.model.compile(optimizer, problem.loss)
        optimizer.build(self.model.trainable_variables)
        self._x, self._y = map(tf.constant, problem.data().train)
        self._weights = functools.cache(lambda s: problem.model(s).get_weights())

    def run(
        self, rate: float, seed: int, *, averaged: bool = False, decay: bool = False
    ) -> dict[str, Any]:
        """Trains, and scores the last weights, and the averages if asked for.

        Returns:
            "last" and "averaged", each with its scores by name; "capped": the share of
            capped updates in the run, None where none can be.
        """
        restart(self.model, self._weights(seed), rate, seed)
        last = _Last()
        others = [*([AverageWeights()] * averaged), *([_Decay(rate)] * decay)]
        with warnings.catch_warnings():
            # Rates that diverge belong to the table.
            warnings.filterwarnings("ignore", message=".*(NaN|finite)")
            history = self.model.fit(
                self._batches(seed),
                shuffle=False,  # they are shuffled
                callbacks=[last, *others],
                verbose=0,
            )
        share = history.history.get("capped", [None])[-1]
        found: dict[str, Any] = {"capped": share}
        if averaged:
            found["averaged"] = self._scored()
        self.model.set_weights(last.weights)
        return {"last": self._scored(), **found}

    def _batches(self, seed: int) -> tf.data.Dataset:
        """All batches of all epochs, each epoch shuffled, as one long epoch.

        `fit` takes tens of milliseconds to begin an epoch, as long as training here.
        """
        rng, size = np.random.default_rng(seed), self.problem.batch_size
        epochs = [rng.permutation(len(self._y)) for _ in range(self.problem.epochs)]
        rows = np.concatenate(epochs).reshape(-1, size)
        # Gathered in the pipeline: the rows of all epochs would be hundreds of MB.
        return tf.data.Dataset.from_tensor_slices(rows).map(
            lambda at: (tf.gather(self._x, at), tf.gather(self._y, at))
        )

    def _scored(self) -> dict[str, float | None]:
        data = self.problem.data()
        parts = {"validation": data.validation, "test": data.test}
        found: dict[str, float | None] = {}
        for name, (x, y) in parts.items():
            outputs = self.model.predict_on_batch(x)
            found |= scores.of(self.problem, outputs, y, name)
        return found


def measured(problem: Problem) -> dict[str, Any]:
    """Scores of all arms, by momentum and learning rate.

    Returns:
        "fractions", the validation scores of those that were "searched", and "arms": a
        list with "arm", "momentum", "rates", and for each score a row per seed with a
        value per rate.
    """
    searched = _searched(problem) if problem.search else {}
    fractions = problem.fractions
    if searched:
        best = problem.best_of(searched, key=lambda fraction: searched[fraction])
        fractions = tuple(dict.fromkeys((fractions[0], best)))
    return {
        "fractions": list(fractions),
        "searched": {f"{fraction:g}": value for fraction, value in searched.items()},
        "arms": [
            row
            for momentum in MOMENTA
            for row in _of_momentum(problem, momentum, fractions)
        ],
    }


def _searched(problem: Problem) -> dict[float, float]:
    # By fraction, the mean score on the validation part, at one rate that is too high.
    runner = Runner(problem, SGDPlus(max_loss_fraction=1.0, order="given"))
    found = {}
    for fraction in problem.fractions:
        runner.model.optimizer.max_loss_fraction = fraction
        runs = [runner.run(_SEARCH_RATE, seed)["last"] for seed in _SEARCH_SEEDS]
        values = [run["validation"] for run in runs]
        print(f"  fraction {fraction:g}: {values}", flush=True)
        if None not in values:
            found[fraction] = round(statistics.mean(values), 4)
    return found


def _of_momentum(
    problem: Problem, momentum: float, fractions: tuple[float, ...]
) -> Iterator[dict[str, Any]]:
    make = functools.partial(SGDPlus, momentum=momentum, order="given")
    runner = Runner(problem, make())
    yield from _rows(runner, problem.rates, {"last": PLAIN, "averaged": AVERAGED})
    yield from _rows(runner, DECADES, {"last": DECAYED}, decay=True)
    runner = Runner(problem, make(global_clipnorm=NORM))
    yield from _rows(runner, DECADES, {"last": CLIPPED})
    runner = Runner(problem, make(max_loss_fraction=1.0))
    for fraction in fractions:
        runner.model.optimizer.max_loss_fraction = fraction
        names = {"last": capped(fraction), "averaged": capped(fraction, averaged=True)}
        yield from _rows(runner, problem.rates, names)


def _rows(
    runner: Runner, rates: Sequence[float], names: dict[str, str], decay: bool = False
) -> Iterator[dict[str, Any]]:
    """The arms of the last weights and of the averages, those that have names."""
    seeds = range(runner.problem.seeds)
    settings = {"averaged": "averaged" in names, "decay": decay}
    runs = [[runner.run(rate, seed, **settings) for rate in rates] for seed in seeds]
    momentum = float(runner.model.optimizer.momentum)
    for kind, arm in names.items():
        row: dict[str, Any] = {"arm": arm, "momentum": round(momentum, 6)}
        row["rates"] = list(rates)
        for score in runs[0][0][kind]:
            row[score] = [[run[kind][score] for run in each] for each in runs]
        if runs[0][0]["capped"] is not None:
            row["capped"] = [[round(r["capped"], 3) for r in each] for each in runs]
        print(f"  {arm}, {momentum:g}: {means(row)}", flush=True)
        yield row


def means(row: dict[str, Any], score: str = "test") -> dict[float, float]:
    """By rate the mean over seeds; NaN where a seed has no finite score."""
    places = zip(*row[score], strict=True)
    values = [math.nan if None in here else statistics.mean(here) for here in places]
    return dict(zip(row["rates"], values, strict=True))
