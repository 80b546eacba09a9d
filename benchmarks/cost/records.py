"""The cost of `ExampleLog`: epochs of `fit` in batches of 1,024.

`python -m benchmarks records [workload ...]`. The models take turns, on one thread.
CPU time is measured: an epoch of `fit` waits for its data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.arms.workloads import Workload
from benchmarks.cost import fits, loops
from benchmarks.shared.finding import Finding

PAIRS = 10  # fits of each arm, in turn, beside the first, which compiles
_EPOCHS = 4  # of a fit; the first does not count
_EXAMPLES = {  # in an epoch
    "softmax-784-10": 16_384,
    "mlp-784-128-10": 16_384,
    "mlp-784-128-10-m0.9": 16_384,
}
_LOSS, _NORM = 0.1, 1.30  # microseconds more, and times the epoch without a log
ARMS = ("no log", "loss", "gradient norm", "prediction")


@dataclass(frozen=True)
class Records(Finding):
    """Microseconds per example of an epoch, by arm, and the losses' agreement."""

    workload: str
    times: dict[str, float]
    more: dict[str, float]  # than without a log: the median of pairs
    agree: bool

    @property
    def met(self) -> bool:
        """Whether the loss and the norm cost no more than their targets."""
        norm = 1 + self.more["gradient norm"] / self.times["no log"]
        return self.more["loss"] <= _LOSS and norm <= _NORM

    @property
    def missed(self) -> bool:
        """Whether a log changes the training or costs more."""
        return not (self.agree and self.met)


def measure(arguments: list[str]) -> Iterator[Records]:
    """Yields each workload."""
    for workload, count in loops.chosen("records", arguments, _EXAMPLES):
        yield _measured(workload, count)


def _measured(workload: Workload, count: int) -> Records:
    from keras_sgd_plus import ExampleLog

    data = fits.batches(workload, count)
    logs: dict[str, list[Any]] = {
        "no log": [],
        "loss": [ExampleLog()],
        "gradient norm": [ExampleLog(gradient_norm=True)],
        "prediction": [ExampleLog(prediction=True)],
    }
    models = fits.models(workload, ARMS)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    losses: dict[str, float] = {}
    for i in range(PAIRS + 1):
        for arm in ARMS:
            timer = fits.clock()
            every = [*logs[arm], timer]
            settings = {"epochs": _EPOCHS, "verbose": 0, "shuffle": False}
            fit = models[arm].fit(data, callbacks=every, **settings)
            losses.setdefault(arm, fit.history["loss"][-1])
            if i:  # the first fit compiles
                median = statistics.median(timer.times[1:])
                times[arm].append(median / count * 1e6)
    first = times["no log"]
    more = {
        arm: statistics.median(b - a for a, b in zip(first, found, strict=True))
        for arm, found in times.items()
    }
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    spread = max(losses.values()) - min(losses.values())
    return Records(workload.id, medians, more, spread <= 1e-4 * abs(losses["no log"]))
