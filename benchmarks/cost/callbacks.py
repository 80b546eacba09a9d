"""What a callback costs: epochs of `fit` in batches of 1,024, with it and without.

`python -m benchmarks averages|records [workload ...]`: `AverageWeights`, and
`ExampleLog`. The models take turns, on one thread. CPU time is measured: an epoch of
`fit` waits for its data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.arms.workloads import Workload
from benchmarks.cost import loops
from benchmarks.cost.options import Options
from benchmarks.shared.finding import Finding

BATCH_SIZE = 1024
ARMS = ("no log", "loss", "gradient norm", "prediction")  # of `records`
_AVERAGES = 1.05  # times the epoch without them
_LOSS, _NORM = 0.1, 1.30  # microseconds more, and times the epoch without a log


class _Study(NamedTuple):
    """How often a study measures: fits of each arm, of which the first compiles."""

    fits: int
    epochs: int  # of a fit; the first does not count
    softmax: int  # examples in an epoch; of the other workloads 16,384
    shuffle: bool


STUDIES = {
    "averages": _Study(9, 5, 32_768, True),
    "records": _Study(11, 4, 16_384, False),
}


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


def measure(name: str, arguments: list[str]) -> Iterator[Finding]:
    """Yields each workload of a study."""
    study = STUDIES[name]
    examples = {
        "softmax-784-10": study.softmax,
        "mlp-784-128-10": 16_384,
        "mlp-784-128-10-m0.9": 16_384,
    }
    for workload, count in loops.chosen(name, __doc__, arguments, examples):
        yield (_averages if name == "averages" else _records)(workload, count)


def _averages(workload: Workload, count: int) -> Options:
    from keras_sgd_plus import AverageWeights

    arms: dict[str, list[Any]] = {"plain": [], "averaged": [AverageWeights()]}
    fits, losses = _trained(workload, count, arms, STUDIES["averages"])
    medians = {
        arm: statistics.median(us for fit in found for us in fit)
        for arm, found in fits.items()
    }
    agree = losses["plain"] == losses["averaged"]
    return Options(workload.id, medians, _AVERAGES, agree)


def _records(workload: Workload, count: int) -> Records:
    from keras_sgd_plus import ExampleLog

    settings = ({}, {"gradient_norm": True}, {"prediction": True})
    logs = [[], *([ExampleLog(**each)] for each in settings)]
    arms = dict(zip(ARMS, logs, strict=True))
    fits, losses = _trained(workload, count, arms, STUDIES["records"])
    times = {arm: list(map(statistics.median, found)) for arm, found in fits.items()}
    first = times["no log"]
    more = {
        arm: statistics.median(b - a for a, b in zip(first, found, strict=True))
        for arm, found in times.items()
    }
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    spread = max(losses.values()) - min(losses.values())
    return Records(workload.id, medians, more, spread <= 1e-4 * abs(losses["no log"]))


def _trained(
    workload: Workload, count: int, arms: Mapping[str, list[Any]], study: _Study
) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    """By arm, for each fit the microseconds per example of its epochs; and the losses.

    The losses are those at the end of the first fits.
    """
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices(workload.data(count))
    data = slices.batch(BATCH_SIZE).cache()
    models = _models(workload, arms)
    found: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    losses: dict[str, float] = {}
    settings = {"epochs": study.epochs, "shuffle": study.shuffle, "verbose": 0}
    for i in range(study.fits):
        for arm, callbacks in arms.items():
            clock = _clock()
            every = [*callbacks, clock]
            fit = models[arm].fit(data, callbacks=every, **settings)
            losses.setdefault(arm, fit.history["loss"][-1])
            if i:
                found[arm].append([s / count * 1e6 for s in clock.times[1:]])
    return found, losses


def _models(workload: Workload, arms: Mapping[str, Any]) -> dict[str, Any]:
    # A model with an SGDPlus for each arm, all from the same weights.
    from benchmarks.arms import keras_arms  # it loads TensorFlow
    from keras_sgd_plus import SGDPlus

    made: dict[str, Any] = {}
    for arm in arms:
        rule = SGDPlus(workload.learning_rate, workload.momentum, order="given")
        made[arm] = keras_arms.compiled(workload, rule)
        first = next(iter(made.values()))
        keras_arms.start_from(made[arm], keras_arms.weights_of(first))
    return made


def _clock() -> Any:
    import keras

    class Clock(keras.callbacks.Callback):
        """Seconds of CPU time of each epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_begin(self, logs: Any = None) -> None:
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            now = time.process_time()
            self.times.append(now - self.start)
            self.start = now

    return Clock()
