"""The benchmarks of quality: search, times to a goal, linear models, and the tables."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import matplotlib
import pytest

from benchmarks import accuracy, curves, linear, readme, record, robustness
from benchmarks.tasks import TASKS
from benchmarks.training import Arm, Run, Trainer, climb, rate_at
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


FOUND: dict[str, Any] = {
    "learning_rate": 0.01,
    "values": [[0.5, 0.91, 0.95], [0.5, 0.6, 0.93]],
    "seconds": [[3.0, 1.0, 1.0], [5.0, 2.0, 2.0]],
}


def test_times_to_a_goal() -> None:
    task = TASKS["mlp"]
    # Means of the last three epochs: 0.5, 0.705, 0.787 and 0.5, 0.55, 0.677.
    assert accuracy.times_to(task, FOUND, 0.7) == [(4.0, 2)]
    assert accuracy.times_to(task, FOUND, 0.67) == [(4.0, 2), (9.0, 3)]
    assert accuracy.times_to(task, FOUND, 0.9) == []
    assert accuracy.epoch_seconds(FOUND) == 1.5
    assert accuracy.first_call(FOUND) == 2.5
    lower = dataclasses.replace(task, higher_is_better=False, goals=(0.6, 0.4))
    assert accuracy.times_to(lower, FOUND, 0.52) == [(3.0, 1), (5.0, 1)]
    assert accuracy.to_goal(lower, FOUND, 1) == "0 of 2 seeds in 7.0 s"
    for goal, cell in ((0.7, "1 of 2 seeds in 7.0 s"), (0.67, "6.5 ± 3.5 s (2.5)")):
        other = dataclasses.replace(task, goals=(goal,))
        assert accuracy.to_goal(other, FOUND, 0) == cell


def test_a_trainer_can_be_used_again() -> None:
    from sklearn.datasets import load_digits

    from benchmarks.datasets import Data

    digits = load_digits()
    x, y = (digits.images / 16).astype("float32"), digits.target.astype("int32")
    part = (x[:200], y[:200])
    task = dataclasses.replace(
        TASKS["mlp"], data=lambda: Data(part, part, part), model=_digits, epochs=2
    )
    trainer = Trainer(task, Arm("SGDPlus", lambda rate: SGDPlus(rate, momentum=0.9)))
    first = trainer.run(0.003, seed=1, part=part)
    other = trainer.run(0.01, seed=2, part=part)
    again = trainer.run(0.003, seed=1, part=part)
    assert first.values == again.values != other.values
    assert len(first.seconds) == 2
    assert Run((1.0, 2.0, 3.0, 7.0), ()).last == 4.0


def _digits(seed: int) -> Any:
    import keras

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
        same = name != "both unchanged"
        assert (distance == pytest.approx(0.03 / (1 - 0.9))) == same, name


@pytest.mark.parametrize("path", readme.FILES, ids=["README", "benchmarks"])
def test_tables_are_those_of_the_results(path: Any) -> None:
    text = path.read_text()
    assert readme.filled(text) == text


def test_every_table_stands_somewhere() -> None:
    text = "".join(path.read_text() for path in readme.FILES)
    assert [t for t in readme.TABLES if f"<!-- table: {t} -->" not in text] == []


def test_every_arm_has_five_seeds() -> None:
    assert set(accuracy.stored()) == set(TASKS)
    for found in accuracy.stored().values():
        assert list(found["arms"]) == [arm.id for arm in accuracy.ARMS]
        for arm in found["arms"].values():
            assert len(arm["values"]) == len(arm["seconds"]) == 5


@pytest.mark.parametrize("name", TASKS)
def test_results_are_those_of_the_code(name: str) -> None:
    arms = accuracy.stored()[name]["arms"]
    for arm in accuracy.ARMS:
        budget = TASKS[name].epochs * arm.more_epochs
        assert {len(run) for run in arms[arm.id]["values"]} == {budget}


def test_figures_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From results in which a run has diverged, and stopped early."""
    matplotlib.use("svg")
    results = {"mlp": json.loads(json.dumps(accuracy.stored()["mlp"]))}
    for kind in ("values", "seconds"):
        results["mlp"]["arms"]["SGDPlus"][kind][0] = [1.0]
    saved: list[str] = []
    monkeypatch.setattr(curves, "save", lambda figure, name: saved.append(name))
    curves.accuracy(results)
    robust = record.read("robustness")
    curves.robustness(robust["results"])
    curves.order(record.read("order")["results"])
    assert saved == ["accuracy", "first", "robustness", "order"]
    assert set(curves._STYLES) == {arm.id for arm in accuracy.ARMS}


@pytest.mark.parametrize("path", readme.FILES, ids=["README", "benchmarks"])
def test_nothing_is_left_open(path: Any) -> None:
    assert re.findall(r"TODO|XXX|To be measured", path.read_text()) == []
