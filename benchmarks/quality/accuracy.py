"""Time to accuracy: SGDPlus beside Keras's SGD and Adam, each with its own tuned rate.

`python -m benchmarks accuracy [task ...] [--seeds 5] [--stored-rates]`. For each task
and arm the same search chooses the learning rate on the validation part, seed 100. Then
every arm trains once per seed, on fresh models, in turns, all for the same number of
seconds. The clock starts at the call of `fit`, so tracing and compilation are in it,
and stands still during evaluation.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator
from typing import Any

import keras

from benchmarks.quality.goals import stored
from benchmarks.quality.tasks import TASKS, Task
from benchmarks.quality.training import Arm, climb, fresh, in_turns
from benchmarks.shared import machine, storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import SGDPlus

_SGD = functools.partial(keras.optimizers.SGD, momentum=0.9)
_ADAM = keras.optimizers.Adam
ARMS = (
    Arm("SGDPlus", SGDPlus),
    # Batches, their source and steps per execution change the time only: such an arm
    # takes the rate of the arm that computes the same.
    Arm("SGDPlus, an epoch is one batch", SGDPlus, whole=True, rate_of="SGDPlus"),
    Arm("SGDPlus, momentum 0.9", functools.partial(SGDPlus, momentum=0.9)),
    Arm(
        "SGDPlus, momentum 0.9, 4 per update",
        functools.partial(SGDPlus, momentum=0.9, examples_per_update=4),
    ),
    Arm(
        "SGDPlus, momentum 0.9, 16 per update",
        functools.partial(SGDPlus, momentum=0.9, examples_per_update=16),
    ),
    Arm("Keras SGD, momentum 0.9, batch 32", _SGD, 32),
    Arm("Keras SGD, momentum 0.9, batch 256", _SGD, 256, more_epochs=3),
    Arm("Keras Adam, batch 32", _ADAM, 32),
    Arm("Keras Adam, batch 256", _ADAM, 256, more_epochs=3),
    Arm(
        "Keras SGD, momentum 0.9, batch 32, 32 steps per execution",
        _SGD,
        32,
        steps_per_execution=32,
        rate_of="Keras SGD, momentum 0.9, batch 32",
    ),
    Arm(
        "Keras Adam, batch 32, 32 steps per execution",
        _ADAM,
        32,
        steps_per_execution=32,
        rate_of="Keras Adam, batch 32",
    ),
)
FIRST = {  # the arms of the README's table and figure, and their names there
    "SGDPlus": "**SGDPlus**",
    "Keras SGD, momentum 0.9, batch 32": "SGD, batch 32",
    "Keras SGD, momentum 0.9, batch 256": "SGD, batch 256",
    "Keras Adam, batch 32": "Adam, batch 32",
    "Keras Adam, batch 32, 32 steps per execution": "Adam, batch 32, 32 steps a call",
    "Keras Adam, batch 256": "Adam, batch 256",
}
_SEARCH_SEED = 100


def _searched(name: str, arm: Arm) -> dict[float, float]:
    """Learning rates tried and their validation metric."""
    task = TASKS[name]
    trainer = fresh(task, arm)  # one for all rates: it compiles once
    part = task.data().validation

    def score(rate: float) -> float:
        value = trainer.run(rate, _SEARCH_SEED, part).last
        print(f"  {arm.id}: rate {rate:g} gives {value:.4f}", flush=True)
        return value

    return climb(score, task.higher_is_better)


def _best(tried: dict[float, float], task: Task) -> float:
    """The rate with the best score."""
    return task.best_of(tried, key=lambda rate: tried[rate])


def _trained(
    task: Task, seeds: int, tried: dict[str, dict[float, float]]
) -> dict[str, Any]:
    """Trains each arm once per seed, in turns, at the best of the rates tried."""
    rates = {arm.id: _best(tried[arm.rate_of or arm.id], task) for arm in ARMS}
    found = in_turns(task, rates, ARMS, seeds, time.perf_counter)
    for arm in ARMS:
        rows = tried.get(arm.id, {})
        found[arm.id]["tried"] = {f"{rate:g}": value for rate, value in rows.items()}
    return found


def _stored_rates(name: str, arm: Arm) -> dict[float, float]:
    # The rates that an earlier search tried.
    tried = stored()[name]["arms"][arm.id]["tried"]
    return {float(rate): value for rate, value in tried.items()}


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures the tasks; writes JSON after each, which keeps the other tasks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy")
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all if none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stored-rates", action="store_true", help="search nothing")
    options = parser.parse_args(arguments)
    for name in options.tasks or TASKS:
        task = TASKS[name]
        print(task.text, flush=True)
        tried = {
            arm.id: (_stored_rates if options.stored_rates else _searched)(name, arm)
            for arm in ARMS
            if not arm.rate_of
        }
        found = _trained(task, options.seeds, tried)
        new = {"environment": machine.environment(), "arms": found}
        storage.write("accuracy", {**stored(), name: new})
    yield Stored("accuracy")
