"""The study of learning rates scores, stores and judges what it says it does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss

from benchmarks.quality import rate_targets, rates, robustness, scores
from benchmarks.quality.datasets import Data
from benchmarks.quality.problems import PROBLEMS, noisy_mnist
from benchmarks.report.tables import rates as tables
from keras_sgd_plus import AverageWeights, SGDPlus


def test_likelihood_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=50)
    y = rng.integers(0, 4, 50)
    found = scores.negative_log_likelihood(probabilities, y)
    assert found == pytest.approx(log_loss(y, probabilities, labels=range(4)))


def test_calibration_error_by_hand() -> None:
    """Confidence 0.9, right in 1 of 2; 0.6 and right in 2 of 2: 0.4 apart in each."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert scores.calibration_error(p, np.array([0, 1, 0, 1])) == pytest.approx(0.4)


def test_a_score_that_is_not_finite_is_none() -> None:
    outputs, y = np.full((3, 2), np.nan), np.array([0, 1, 1])
    found = scores.of(PROBLEMS["mlp"], outputs, y, "test")
    assert found["nll"] is found["ece"] is None
    minutes = scores.of(PROBLEMS["flights"], np.full((3, 1), 2.0), y[:, None], "test")
    assert minutes == {"test": pytest.approx(30 * 4 / 3, abs=1e-4)}


@pytest.mark.matrix
def test_a_fifth_of_the_labels_is_wrong() -> None:
    clean, noisy = PROBLEMS["mlp"].data(), noisy_mnist()
    share = (clean.train[1] != noisy.train[1]).mean()
    assert share == pytest.approx(0.2, abs=1e-3)
    assert (clean.test[1] == noisy.test[1]).all()


@pytest.mark.matrix
def test_batches_divide_the_examples() -> None:
    for problem in PROBLEMS.values():
        assert len(problem.data().train[0]) % problem.batch_size == 0, problem.id


def _tiny() -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype("float32")
    part = (x, (x.sum(1) > 0).astype("int32"))
    return dataclasses.replace(
        PROBLEMS["mlp"],
        data=lambda: Data(part, part, part),
        model=_linear,
        epochs=2,
        batch_size=20,
    )


def _linear(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, "softmax")])


@pytest.mark.matrix
def test_one_run_gives_the_last_weights_and_their_averages() -> None:
    """Both as plain `fit` gives them over the same rows; a rate of zero leaves all."""
    problem = _tiny()
    optimizer = SGDPlus(order="given", momentum=0.5)
    runner = rates.Runner(problem, optimizer)
    first = runner.run(0.1, 3, averaged=True)
    runner.run(5.0, 4, decay=True)
    again = runner.run(0.1, 3, averaged=True)
    assert again == first
    assert first["last"] != first["averaged"]
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.permutation(60) for _ in range(2)])
    x, y = (array[rows] for array in problem.data().train)
    for kind, callbacks in (("last", []), ("averaged", [AverageWeights()])):
        model = problem.model(3)
        model.compile(SGDPlus(0.1, order="given", momentum=0.5), problem.loss)
        model.fit(x, y, batch_size=20, shuffle=False, verbose=0, callbacks=callbacks)
        loss = model.evaluate(*problem.data().test, verbose=0)
        assert first[kind]["nll"] == pytest.approx(loss, abs=1e-4), kind


@pytest.mark.matrix
def test_the_rate_falls_linearly_to_zero() -> None:
    seen: list[float] = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(round(float(self.model.optimizer.learning_rate), 6))

    runner = rates.Runner(_tiny(), SGDPlus(order="given"))
    callbacks = [rates._Decay(0.6), Seen()]
    batches = runner._batches(0)
    runner.model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0)
    assert seen == [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def _row(arm: str, momentum: float, values: list[float | None]) -> dict[str, Any]:
    row = {"arm": arm, "momentum": momentum, "rates": [0.001, 0.01, 0.1, 1.0, 10.0]}
    return {**row, "validation": [values], "test": [values, values], "nll": [values]}


@pytest.mark.parametrize(
    ("worst", "met"), [(0.92, "yes"), (0.9199, "NO"), (None, "NO")]
)
def test_every_rate_must_reach_the_bound(worst: float | None, met: str) -> None:
    """Rates below the range do not count; a run that ended as NaN does."""
    rows = [_row("capped 1", m, [0.1, 0.95, worst, 0.95, 0.95]) for m in (0.0, 0.9)]
    stored = {"mlp": {"fractions": [1.0], "arms": rows}}
    assert [line[-1] for line in rate_targets.verdicts(stored)] == [met, met]


@pytest.mark.parametrize(("worst", "met"), [(13.1, "yes"), (13.2, "NO")])
def test_minutes_are_judged_beside_plain_sgd_at_its_best(
    worst: float, met: str
) -> None:
    rows = [_row("plain", m, [12.9, 12.65, 90.0, None, None]) for m in (0.0, 0.9)]
    rows += [_row("capped 0.1", m, [20, 12.7, 12.7, worst, 13]) for m in (0.0, 0.9)]
    for arm in ("capped 1", "capped 0.1, averaged"):
        rows += [_row(arm, m, [99.0] * 5) for m in (0.0, 0.9)]
    for row in rows:
        del row["nll"]
    stored = {"flights": {"fractions": [1.0, 0.1], "arms": rows}}
    said = [line[-1] for line in rate_targets.verdicts(stored)]
    assert said == [met, met, "NO", "NO"]


def test_the_best_rate_is_that_of_the_validation_part() -> None:
    row = _row("plain", 0.0, [0.5, 0.9, 0.8, 0.7, None])
    row["validation"] = [[0.5, 0.6, 0.8, 0.7, None]]
    assert tables.best_rate(PROBLEMS["mlp"], row) == 0.1
    assert math.isnan(rates.means(row)[10.0])


def test_what_is_stored_is_complete() -> None:
    stored = robustness.stored()
    assert set(stored) == set(robustness.PARTS)
    for name, problem in PROBLEMS.items():
        arms = ["plain", "averaged", "linear decay", "clipped"]
        for fraction in stored[name]["fractions"]:
            arms += [rates.capped(fraction), rates.capped(fraction, averaged=True)]
        rows = stored[name]["arms"]
        assert [row["arm"] for row in rows] == 2 * arms
        assert all(len(row["test"]) == problem.seeds for row in rows)
        assert all(len(run) == len(r["rates"]) for r in rows for run in r["test"])
