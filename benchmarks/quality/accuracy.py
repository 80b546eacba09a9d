"""Time to accuracy: SGDPlus beside Keras's SGD and Adam, each with its own tuned rate.

`python -m benchmarks accuracy [task ...] [--missing]`. For each task and arm the same
search chooses the learning rate on the validation part, seed 100; one arm of SGDPlus is
not tuned. Then every arm trains once per seed, on fresh models, in turns, all for the
same number of seconds. The clock starts at the call of `fit`, so tracing and
compilation are in it, and stands still during evaluation. Each task is stored when it
is done; `--missing` leaves out those that this very code has measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import keras

from benchmarks.quality.goals import stored
from benchmarks.quality.tasks import TASKS, Task
from benchmarks.quality.training import Arm, climb, fresh, in_turns
from benchmarks.shared import command, machine, storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import AverageWeights, SGDPlus

_SGD = functools.partial(keras.optimizers.SGD, momentum=0.9)
_ADAM = keras.optimizers.Adam
_PLAIN, _BOUNDED = "SGDPlus", "SGDPlus, not tuned, max_loss_fraction=1"
AVERAGED = "SGDPlus, AverageWeights"
_SGD_32 = "Keras SGD, momentum 0.9, batch 32, 32 steps per execution"
_SGD_256 = "Keras SGD, momentum 0.9, batch 256"
_ADAM_32 = "Keras Adam, batch 32, 32 steps per execution"
ARMS = (
    Arm(_PLAIN, SGDPlus),
    Arm(_BOUNDED, functools.partial(SGDPlus, max_loss_fraction=1.0), rate=0.01),
    Arm(AVERAGED, SGDPlus, callbacks=lambda: [AverageWeights()]),
    Arm("SGDPlus, momentum 0.9", functools.partial(SGDPlus, momentum=0.9)),
    Arm(_SGD_32, _SGD, 32, steps_per_execution=32),
    Arm(_SGD_256, _SGD, 256, more_epochs=3),
    Arm(_ADAM_32, _ADAM, 32, steps_per_execution=32),
    Arm("Keras Adam, batch 256", _ADAM, 256, more_epochs=3),
)
FIRST = {  # the arms of the README's table, and their names there
    _PLAIN: "**SGDPlus**",
    _SGD_32: "Keras SGD, batch 32",
    _ADAM_32: "Keras Adam, batch 32",
}
SHOWN = (_PLAIN, _BOUNDED, AVERAGED, _SGD_32, _ADAM_32, _SGD_256)  # in the figures
_SEARCH_SEED, _SEEDS = 100, 5


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


def _trained(task: Task, tried: dict[str, dict[float, float]]) -> dict[str, Any]:
    """Trains each arm once per seed, in turns, at the best of the rates tried."""
    rates = {arm.id: arm.rate or _best(tried[arm.id], task) for arm in ARMS}
    found = in_turns(task, rates, ARMS, _SEEDS, time.perf_counter)
    for arm in ARMS:
        rows = tried.get(arm.id, {})
        found[arm.id]["tried"] = {f"{rate:g}": value for rate, value in rows.items()}
    return found


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures the tasks; writes JSON after each, which keeps the other tasks."""
    options = command.options("accuracy", __doc__, arguments, TASKS, missing=False)
    for name in options.names:
        if options.missing and machine.is_fresh(stored().get(name)):
            continue
        task = TASKS[name]
        print(task.text, flush=True)
        tried = {arm.id: _searched(name, arm) for arm in ARMS if not arm.rate}
        found = _trained(task, tried)
        new = {"environment": machine.environment(), "arms": found}
        storage.write("accuracy", {**stored(), name: new})
    yield Stored("accuracy")
