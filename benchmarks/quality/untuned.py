"""Time to accuracy without tuning: every optimizer at the rate of its documentation.

`python -m benchmarks untuned [task ...]`. The tasks, the goals and the
seconds of `accuracy`, but no search: Keras's optimizers have their default rate, and
SGDPlus is bounded by `max_loss_fraction`, at a rate that nobody chose for the task.
Keras's arms have batches of 32, its default, and `steps_per_execution=32`, its remedy
for small batches. Seconds are those of the CPU, of all threads together: other programs
on the machine then count less. Compilation is in them, evaluation is not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import keras

from benchmarks.quality.tasks import TASKS
from benchmarks.quality.training import Arm, in_turns
from benchmarks.shared import command, machine, storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import SGDPlus


def _bounded(fraction: float, rate: float) -> tuple[Arm, float]:
    name = f"SGDPlus({rate:g}, max_loss_fraction={fraction:g})"
    return Arm(name, functools.partial(SGDPlus, max_loss_fraction=fraction)), rate


def _by_default(optimizer: Any) -> tuple[Arm, float]:
    rate = round(float(optimizer().learning_rate), 6)  # what is documented
    return Arm(f"Keras {optimizer.__name__}()", optimizer, 32, 32), rate


_ROWS = (
    _bounded(1.0, 1.0),
    _bounded(1.0, 0.1),
    _bounded(1.0, 0.01),
    (Arm("SGDPlus()", SGDPlus), 0.01),
    _by_default(keras.optimizers.SGD),
    _by_default(keras.optimizers.Adam),
    _by_default(keras.optimizers.RMSprop),
)
SEEDS = 3
ARMS = tuple(arm for arm, _ in _ROWS)
RATES = {arm.id: rate for arm, rate in _ROWS}


def stored() -> dict[str, Any]:
    """By task, its "environment" and its "arms", each with its runs; may be empty."""
    return storage.results_of("untuned", otherwise={})


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures the tasks; writes JSON after each, which keeps the other tasks."""
    for name in command.options("untuned", __doc__, arguments, TASKS).names:
        print(TASKS[name].text, flush=True)
        here = machine.environment()
        found = in_turns(TASKS[name], RATES, ARMS, SEEDS, time.process_time)
        new = {"environment": here, "arms": found}
        storage.write("untuned", {**stored(), name: new})
    yield Stored("untuned")
