"""The benchmarks of quality search rates, time goals, and write true tables."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import keras
import matplotlib
import numpy as np
import pytest

from benchmarks.quality import accuracy, goals, linear, robustness
from benchmarks.quality.datasets import Data
from benchmarks.quality.tasks import TASKS
from benchmarks.quality.training import Arm, Run, Trainer, climb, rate_at
from benchmarks.report import readme
from benchmarks.report.figures import canvas
from benchmarks.report.figures import quality as curves
from benchmarks.report.figures import rates as rate_curves
from benchmarks.report.tables import quality as quality_tables
from benchmarks.shared import machine, storage
from keras_sgd_plus import SGDPlus


@pytest.mark.parametrize("peak", [-9, -5, -4, -3, 0])
@pytest.mark.parametrize("sign", [1, -1])
def test_search_finds_the_peak(peak: int, sign: int) -> None:
    tried = climb(lambda rate: -sign * abs(2 * math.log10(rate) - peak), sign > 0)
    choose = max if sign > 0 else min
    assert choose(tried, key=lambda rate: tried[rate]) == rate_at(peak)
    assert {rate_at(peak - 1), rate_at(peak + 1)} <= set(tried)
    assert list(tried) == sorted(tried)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_search_leaves_rates_that_diverge(higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    tried = climb(
        lambda rate: math.nan if rate > 2e-4 else sign * rate, higher_is_better
    )
    choose = max if higher_is_better else min
    assert choose(tried, key=lambda rate: tried[rate]) == rate_at(-8)


FOUND: dict[str, Any] = {  # of the first seed a run of 6 s, of the second one of 9 s
    "learning_rate": 0.01,
    "values": [[0.5, 0.9, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8, 0.3]],
    "checks": [[0.1, 0.1, 0.1, 0.2], [0.1, 0.1, 0.9, 0.1, 0.1]],
    "seconds": [[3.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0, 1.0]],
}


def test_times_to_a_goal() -> None:
    task = dataclasses.replace(TASKS["mlp"], seconds=6)
    # Means of three epochs: 0.7, 0.8 of the first seed; 0.6, 0.7, 0.6 of the second.
    assert goals.times_to(task, FOUND, 0.55) == [(3.0, 1), (5.0, 1)]
    assert goals.times_to(task, FOUND, 0.69) == [(3.0, 1), (6.0, 2)]
    assert goals.times_to(task, FOUND, 0.75) == [(4.0, 2), (math.inf, 0)]
    assert quality_tables.to_goal(task, FOUND, 0.69) == "6.0 s (3.0 to 6.0), 2 epochs"
    assert quality_tables.to_goal(task, FOUND, 0.75) == "> 6 s (1 of 2)"
    three = {k: v if k == "learning_rate" else v[:1] + v for k, v in FOUND.items()}
    cell = quality_tables.to_goal(task, three, 0.75, epochs=False)
    assert cell == "4.0 s (4.0 to > 6)"
    lower = dataclasses.replace(task, higher_is_better=False)
    assert goals.times_to(lower, FOUND, 0.65) == [(5.0, 1), (math.inf, 0)]
    assert goals.epoch_seconds(FOUND) == 1.0
    assert goals.first_calls(FOUND) == 3.0  # of the medians of 4 and 6 seconds


def test_the_end_is_where_validation_says() -> None:
    """Validation chooses the end, not the test part; goals follow from it by a rule."""
    task = TASKS["mlp"]
    # All windows of the second seed hold the 0.9 of the third epoch: the first counts.
    assert goals.final(task, FOUND) == pytest.approx([0.8, 0.6])
    worse = {**FOUND, "values": [[0.55] * 4, [0.555] * 5]}
    arms = {"a": FOUND, "b": worse, "c": {**FOUND, "values": [[1.0] * 4, [1.0] * 5]}}
    assert goals.goals(task, arms) == [0.55, 0.7]
    lower = dataclasses.replace(task, higher_is_better=False, step=0.25)
    assert goals.final(lower, FOUND) == pytest.approx([0.7, 0.6])
    assert goals.goals(lower, arms) == [1.0, 0.75]


@pytest.mark.matrix
def test_a_trainer_can_be_used_again() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images / 16).astype("float32"), digits.target.astype("int32")
    part = (x[:200], y[:200])
    task = dataclasses.replace(
        TASKS["mlp"], data=lambda: Data(part, part, part), model=_digits, epochs=2
    )
    trainer = Trainer(task, Arm("SGDPlus", lambda rate: SGDPlus(rate, momentum=0.9)))
    first = trainer.run(0.003, 1, part)
    other = trainer.run(0.01, 2, part)
    again = trainer.run(0.003, 1, part, part)
    assert again.values == 2 * first.values
    assert first.values != other.values
    assert len(first.seconds) == 2
    assert Run(((1.0, 2.0, 3.0, 7.0),), ()).last == 4.0
    timed = trainer.run(0.003, 1, part, seconds=0.2, epochs=300)
    assert sum(timed.seconds[:-1]) < 0.2 <= sum(timed.seconds)
    assert timed.values[0][:1] == first.values[0][:1]


class _Counted(keras.callbacks.Callback):
    """Counts the runs of `fit` that it saw."""

    runs = 0

    def on_train_begin(self, logs: Any = None) -> None:
        _Counted.runs += 1


def test_a_run_has_the_callbacks_of_its_arm() -> None:
    part = (np.ones((8, 8, 8), "float32"), np.zeros(8, "int32"))
    task = dataclasses.replace(
        TASKS["mlp"], data=lambda: Data(part, part, part), model=_digits, epochs=1
    )
    arm = Arm("SGD", keras.optimizers.SGD, 8, callbacks=lambda: [_Counted()])
    trainer = Trainer(task, arm)
    for expected in (1, 2):
        trainer.run(0.01, 0, part)
        assert _Counted.runs == expected


def test_what_is_searched_and_what_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Every rate but that of the arm that is not tuned; with --missing, once."""
    searched: list[str] = []
    tried = {0.01: 0.9}
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "environment", lambda: {"commit": "1234567"})
    monkeypatch.setattr(
        accuracy, "_searched", lambda name, arm: searched.append(arm.id) or tried
    )
    rates: dict[str, float] = {}

    def in_turns(task: Any, chosen: dict[str, float], *rest: Any) -> dict[str, Any]:
        rates.update(chosen)
        return {arm: {} for arm in chosen}

    monkeypatch.setattr(accuracy, "in_turns", in_turns)
    for _ in range(2):
        assert list(accuracy.measure(["mlp", "--missing"]))
    tuned = [arm.id for arm in accuracy.ARMS if "not tuned" not in arm.id]
    assert searched == tuned
    assert set(rates) == {arm.id for arm in accuracy.ARMS}
    assert set(goals.stored()) == {"mlp"}


def _digits(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((8, 8)), *layers])


@pytest.mark.parametrize("problem", linear.PROBLEMS[:3], ids=lambda p: p.id)
def test_coefficients_are_those_of_scikit_learn(problem: linear.Problem) -> None:
    apart, largest = linear.difference(problem)
    assert apart < linear.BOUND * largest


def test_ports_cover_the_same_distance() -> None:
    for name, convert in robustness.PORTS.items():
        rate, momentum = convert(0.03, 0.9)
        distance = 32 * rate / (1 - momentum)
        same = "both unchanged" not in name
        assert (distance == pytest.approx(0.03 / (1 - 0.9))) == same, name


@pytest.mark.parametrize(
    "path", readme.FILES, ids=lambda path: "/".join(path.parts[-2:])
)
def test_tables_are_those_of_the_results(path: Any) -> None:
    text = path.read_text()
    assert readme.filled(text) == text


def test_every_table_stands_somewhere() -> None:
    text = "".join(path.read_text() for path in readme.FILES)
    assert [t for t in readme.TABLES if f"<!-- table: {t} -->" not in text] == []


def test_every_arm_has_five_seeds() -> None:
    assert set(goals.stored()) == set(TASKS)
    for found in goals.stored().values():
        assert list(found["arms"]) == [arm.id for arm in accuracy.ARMS]
        for arm in found["arms"].values():
            assert len(arm["values"]) == len(arm["seconds"]) == 5


@pytest.mark.parametrize("name", TASKS)
def test_results_are_those_of_the_code(name: str) -> None:
    """Each run has had its seconds and no epoch more, or has diverged."""
    for arm in goals.stored()[name]["arms"].values():
        for run, values in zip(arm["seconds"], arm["values"], strict=True):
            assert sum(run[:-1]) < TASKS[name].seconds
            assert sum(run) >= TASKS[name].seconds or not math.isfinite(values[-1])
            assert len(values) == len(run)


@pytest.mark.matrix
def test_figures_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results have a run that diverged and stopped early."""
    matplotlib.use("svg")
    results = {"mlp": json.loads(json.dumps(goals.stored()["mlp"]))}
    for kind in ("values", "checks", "seconds"):
        results["mlp"]["arms"]["SGDPlus"][kind][0] = [1.0]
    saved: list[str] = []
    for module in (curves, rate_curves):
        monkeypatch.setattr(module, "save", lambda figure, name: saved.append(name))
    curves.accuracy(results)
    robust = storage.read("robustness")
    curves.robustness(robust["results"])
    curves.order(storage.read("order")["results"])
    assert saved == ["accuracy", "first", "rates", "robustness", "order"]
    assert set(curves._LOOKS) == set(accuracy.SHOWN)
    assert {*accuracy.SHOWN, *accuracy.FIRST} <= {arm.id for arm in accuracy.ARMS}
    assert len(set(map(canvas.colour_of, accuracy.SHOWN))) == len(accuracy.SHOWN)
