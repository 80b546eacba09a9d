"""One arm trains on one task: quality after each epoch, and the time of each epoch."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from benchmarks.quality.datasets import Part
from benchmarks.quality.tasks import Task
from benchmarks.shared.quiet import QUIET

Optimizer = keras.optimizers.Optimizer
Clock = Callable[[], float]
WINDOW = 3  # epochs


@dataclass(frozen=True)
class Arm:
    """An optimizer by its learning rate, and how it is fed.

    `batch_size` None is the task's own, for SGDPlus. `callbacks` makes those of a run.
    `rate` is a learning rate that is not tuned. `more_epochs` is for the search.
    """

    id: str
    optimizer: Callable[[float], Optimizer]
    batch_size: int | None = None
    steps_per_execution: int = 1
    callbacks: Callable[[], list[keras.callbacks.Callback]] = list
    rate: float | None = None
    more_epochs: int = 1  # times as many


def windows(values: Sequence[float]) -> list[float]:
    """At each epoch the mean with the next two; it ends two epochs before the run.

    Single epochs are noisy. Of a run that is shorter than that, its mean.
    """
    last = max(0, len(values) - WINDOW)
    return [statistics.mean(values[e : e + WINDOW]) for e in range(last + 1)]


@dataclass(frozen=True)
class Run:
    """The metric on each part after each epoch, and the seconds of each epoch."""

    values: tuple[tuple[float, ...], ...]  # a row per part
    seconds: tuple[float, ...]  # the first has tracing and compilation in it

    @property
    def last(self) -> float:
        """The metric of the first part at the end: the mean of three epochs."""
        return windows(self.values[0])[-1]


class _Watch(keras.callbacks.Callback):
    """Evaluates after each epoch, with the clock stopped; stops when it has run out."""

    def __init__(
        self, task: Task, parts: Sequence[Part], budget: float, clock: Clock
    ) -> None:
        super().__init__()
        self.task, self.parts, self.budget, self.clock = task, parts, budget, clock
        self.values: list[list[float]] = [[] for _ in parts]
        self.seconds: list[float] = []
        self.start = clock()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds.append(self.clock() - self.start)
        settings = {"batch_size": 1_000, "verbose": 0, "return_dict": True}
        for (x, y), values in zip(self.parts, self.values, strict=True):
            found = self.model.evaluate(x, y, **settings)
            values.append(float(found[self.task.metric or "loss"] * self.task.scale))
            if not math.isfinite(found["loss"]):  # it does not come back
                self.model.stop_training = True
        if sum(self.seconds) >= self.budget:
            self.model.stop_training = True
        self.start = self.clock()


class Trainer:
    """A compiled model of a task and an arm, which can be trained again and again."""

    def __init__(self, task: Task, arm: Arm) -> None:
        self.task, self.arm = task, arm
        self.model = task.model(0)
        self.model.compile(
            arm.optimizer(0.01),
            task.loss,
            metrics=[task.metric] if task.metric else None,
            steps_per_execution=arm.steps_per_execution,
        )
        # `run` sets the optimizer's variables to zero, before the first `fit` too.
        self.optimizer.build(self.model.trainable_variables)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the model."""
        return self.model.optimizer

    def run(
        self,
        rate: float,
        seed: int,
        *parts: Part,
        epochs: int | None = None,
        seconds: float | None = None,
        clock: Clock = time.perf_counter,
    ) -> Run:
        """Trains from fresh weights; the metric is that on each of `parts`.

        The run ends with the epoch in which `seconds` have passed, or after `epochs`;
        with neither, after those of the search. `clock` gives seconds.
        """
        if epochs is None:
            searched = self.task.epochs * self.arm.more_epochs
            epochs = searched if seconds is None else 1_000_000  # the seconds end it
        restart(self.model, self.task.model(seed).get_weights(), rate, seed)
        if hasattr(self.optimizer, "seed"):
            self.optimizer.seed = seed
        x, y = self.task.data().train
        budget = math.inf if seconds is None else seconds
        watch = _Watch(self.task, parts, budget, clock)
        callbacks = [*self.arm.callbacks(), watch]
        size = self.arm.batch_size or self.task.batch_size
        settings = {"batch_size": size, "epochs": epochs, "verbose": 0}
        self.model.fit(x, y, callbacks=callbacks, **settings)
        return Run(tuple(map(tuple, watch.values)), tuple(watch.seconds))


def restart(
    model: keras.Model, weights: list[np.ndarray], rate: float, seed: int
) -> None:
    """Makes a model begin anew, with nothing to compile: its optimizer is built."""
    model.set_weights(weights)
    optimizer: Optimizer = model.optimizer
    for variable in optimizer.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    optimizer.learning_rate = rate
    keras.utils.set_random_seed(seed)  # of the order in which fit shuffles


def fresh(task: Task, arm: Arm) -> Trainer:
    """A trainer whose first run compiles everything; earlier models are forgotten."""
    # Else earlier models stay in memory.
    keras.backend.clear_session()
    gc.collect()
    return Trainer(task, arm)


def in_turns(
    task: Task, rates: dict[str, float], arms: Sequence[Arm], seeds: int, clock: Clock
) -> dict[str, dict[str, Any]]:
    """Trains each arm once per seed, for the seconds of the task, on fresh models.

    Before each run it waits until the machine is quiet.

    Returns:
        By arm its "learning_rate", and a row per seed of "values" on the test part and
        "checks" on the validation part after each epoch, and of its "seconds".
    """
    runs: dict[str, list[Run]] = {arm.id: [] for arm in arms}
    data = task.data()
    for seed in range(seeds):
        for i in range(len(arms)):
            # Another arm first for each seed: the machine may slow down in a round.
            arm = arms[(i + seed) % len(arms)]
            QUIET.wait()
            # A fresh model, so that each run has its compilation on the clock.
            run = fresh(task, arm).run(
                rates[arm.id],
                seed,
                data.test,
                data.validation,
                seconds=task.seconds,
                clock=clock,
            )
            runs[arm.id].append(run)
            print(f"  seed {seed}, {arm.id}: {run.last:.4f}", flush=True)
    # More digits would be noise, and thousands of them make the file long.
    return {
        arm.id: {
            "learning_rate": rates[arm.id],
            "values": [[round(v, 5) for v in run.values[0]] for run in runs[arm.id]],
            "checks": [[round(v, 5) for v in run.values[1]] for run in runs[arm.id]],
            "seconds": [[round(s, 4) for s in run.seconds] for run in runs[arm.id]],
        }
        for arm in arms
    }


def climb(
    score: Callable[[float], float], higher_is_better: bool, start: int = -4
) -> dict[float, float]:
    """Learning rates and scores: 0.01 and its neighbours, half a decade apart.

    It goes up and down from the start for as long as the score gets better, so the best
    has one that is no better on either side. A score that is not finite is the worst.
    """
    sign = 1.0 if higher_is_better else -1.0
    tried: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in tried:
            value = score(rate_at(place))
            tried[place] = sign * value if math.isfinite(value) else -math.inf
        return tried[place]

    while at(start) == -math.inf and start > -16:
        start -= 1
    for step in (-1, 1):
        place = start
        while at(place + step) > at(place):
            place += step
    return {rate_at(place): sign * tried[place] for place in sorted(tried)}


def rate_at(place: int) -> float:
    """Rates half a decade apart: -4 is 0.01, -3 is 0.032, with two digits."""
    return float(f"{10 ** (place / 2):.1e}")
