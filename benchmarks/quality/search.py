"""Learning rates that nobody chose, beside the best that there are.

`python -m benchmarks search [task ...] [--seeds n]`. Each arm trains as often as there
are seeds, for the epochs of its task. The limit is the best of SGDPlus with a rate that
falls to zero: half decades, chosen on the validation part, for each seed anew. The
score of an arm is its test error over that of the limit. Seconds are those of the CPU,
of all threads together, for a fresh model: the search and compilation are in them.

What a seed has given is stored at once. A run goes on where an earlier one was left.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from benchmarks.quality.search_tasks import SEARCH_TASKS, SearchTask
from benchmarks.quality.training import climb, restart
from benchmarks.shared import command, machine, storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import AverageWeights, LinearDecay, SGDPlus, find_learning_rate

SEEDS = 5
FOUND, CONSTANT = "SGDPlus, found, falling", "SGDPlus, found, constant"
RANGE_TEST, LIMIT = "SGDPlus, range test, falling", "SGDPlus, best, falling"
_RANGE = np.geomspace(1e-7, 10, 100)  # rates of the range test, as in fastai


@dataclass(frozen=True)
class Untuned:
    """An arm whose rate is a default; `falls` adds a linear decay to zero."""

    id: str
    optimizer: Callable[..., keras.optimizers.Optimizer]
    batch_size: int | None = None  # None: that of the task
    falls: bool = False
    averages: bool = False

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Those of a run."""
        found: list[keras.callbacks.Callback] = []
        found += [LinearDecay()] if self.falls else []
        found += [AverageWeights()] if self.averages else []
        return found


_ADAM, _RMSPROP = keras.optimizers.Adam, keras.optimizers.RMSprop
_CAPPED = functools.partial(SGDPlus, max_loss_fraction=1.0)
UNTUNED = (
    Untuned("SGDPlus()", SGDPlus),
    Untuned("SGDPlus(max_loss_fraction=1.0), averages", _CAPPED, averages=True),
    Untuned("Adam(), batch 32", _ADAM, 32),
    Untuned("Adam(), batch 32, falling", _ADAM, 32, falls=True),
    Untuned("Adam(), batch 256", _ADAM, 256),
    Untuned("Adam(), batch 256, falling", _ADAM, 256, falls=True),
    Untuned("RMSprop(), batch 32", _RMSPROP, 32),
)
ARMS = (FOUND, CONSTANT, *(arm.id for arm in UNTUNED), RANGE_TEST, LIMIT)


class _Run:
    """A task with one seed: fresh models, and what they end with."""

    def __init__(self, task: SearchTask, seed: int) -> None:
        self.task, self.seed, self.data = task, seed, task.data()

    def model(self, optimizer: keras.optimizers.Optimizer, steps: int = 1) -> Any:
        """A fresh model; earlier ones are forgotten."""
        keras.backend.clear_session()
        gc.collect()
        model = self.task.model(self.seed)
        metrics = [self.task.metric] if self.task.metric else None
        loss = self.task.loss
        model.compile(optimizer, loss, metrics=metrics, steps_per_execution=steps)
        return model

    def ours(self, make: Callable[..., SGDPlus] = SGDPlus) -> Any:
        """A fresh model with SGDPlus, as the task sets it."""
        return self.model(make(momentum=self.task.momentum, seed=self.seed))

    def fit(self, model: Any, *callbacks: Any, batch_size: int | None = None) -> None:
        """Trains for the epochs of the task."""
        size = batch_size or self.task.batch_size
        settings = {"batch_size": size, "epochs": self.task.epochs, "verbose": 0}
        model.fit(*self.data.train, callbacks=list(callbacks), **settings)

    def error(self, model: Any, part: Any = None) -> float:
        """The error of a model on a part of the data, by default the test part."""
        part = self.data.test if part is None else part
        logs = model.evaluate(*part, batch_size=2_000, verbose=0, return_dict=True)
        found = logs[self.task.metric or "loss"]
        return 1 - found if self.task.metric == "accuracy" else found


def _timed(train: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return train(), time.process_time() - start


def _untuned(run: _Run, arm: Untuned) -> dict[str, float]:
    is_ours = arm.batch_size is None

    def train() -> Any:
        steps = 32 if arm.batch_size == 32 else 1
        model = run.ours(arm.optimizer) if is_ours else None
        model = model or run.model(arm.optimizer(), steps)
        run.fit(model, *arm.callbacks(), batch_size=arm.batch_size)
        return model

    model, seconds = _timed(train)
    return {"error": run.error(model), "seconds": seconds}


def _found(run: _Run) -> tuple[Any, Any, dict[str, float]]:
    def train() -> Any:
        model = run.ours()
        size = run.task.batch_size
        found = find_learning_rate(model, *run.data.train, batch_size=size, verbose=0)
        run.fit(model, LinearDecay())
        return model, found

    (model, found), seconds = _timed(train)
    result = {
        "error": run.error(model),
        "seconds": seconds,
        "rate": found.learning_rate,
        "search": found.seconds,
    }
    return model, found, result


def measure_seed(task: SearchTask, seed: int) -> dict[str, dict[str, Any]]:
    """What each arm ends with, by its name."""
    run, rows = _Run(task, seed), {}
    for arm in UNTUNED:
        rows[arm.id] = _untuned(run, arm)
    model, found, rows[FOUND] = _found(run)
    rows[FOUND]["losses"] = [
        [float(f"{rate:.3g}"), round(float(loss), 5)]
        for rate, loss in zip(found.rates, found.losses, strict=True)
        if math.isfinite(loss)
    ]
    weights = task.model(seed).get_weights()

    def again(rate: float, *callbacks: Any) -> dict[str, float]:
        # With the same model, which is compiled.
        restart(model, weights, rate, seed)
        run.fit(model, *callbacks)
        return {"error": run.error(model), "rate": rate}

    rows[CONSTANT] = again(found.constant_learning_rate)
    restart(model, weights, _RANGE[0], seed)
    rate = range_test(model, *run.data.train, seed)
    rows[RANGE_TEST] = again(rate, LinearDecay())
    tried: dict[float, tuple[float, dict[str, float]]] = {}

    def score(rate: float) -> float:
        if rate not in tried:
            row = again(rate, LinearDecay())
            value = run.error(model, run.data.validation)
            tried[rate] = value if math.isfinite(value) else math.inf, row
        return tried[rate][0]

    # There may be two valleys.
    for start in {round(2 * math.log10(found.learning_rate)), -4, -2}:
        climb(score, higher_is_better=False, start=start)
    rows[LIMIT] = min(tried.values(), key=lambda each: each[0])[1]
    return {
        arm: {k: v if isinstance(v, list) else float(f"{v:.5g}") for k, v in r.items()}
        for arm, r in rows.items()
    }


def range_test(model: Any, x: np.ndarray, y: np.ndarray, seed: int) -> float:
    """The rate of a range test: it rises from step to step, and the valley is taken.

    As `lr_find` of fastai (https://docs.fast.ai/callback.schedule.html), with steps of
    20 examples, one after the other: 100 rates from 1e-7 to 10, losses smoothed by
    0.98, an end where they are four times the smallest. The valley is the longest run
    of losses of which each is below the one before, others left out; the rate is that
    in the middle of it.
    """
    rows = np.random.default_rng(seed).permutation(len(x))
    smooth, mean, rates = [], 0.0, []
    for i, rate in enumerate(_RANGE):
        part = rows[20 * i : 20 * i + 20]
        if not len(part):
            break
        model.optimizer.learning_rate = rate
        model.reset_metrics()
        loss = float(model.train_on_batch(x[part], y[part], return_dict=True)["loss"])
        mean = 0.98 * mean + 0.02 * loss
        value = mean / (1 - 0.98 ** (i + 1))
        if not math.isfinite(value) or value > 4 * min(smooth, default=math.inf):
            break
        smooth.append(value)
        rates.append(float(rate))
    return rates[_middle_of_valley(smooth)]


def _middle_of_valley(losses: list[float]) -> int:
    # Of the longest sequence of indices whose losses fall.
    lengths: list[int] = []
    before: list[int | None] = []
    for i, loss in enumerate(losses):
        earlier = [j for j in range(i) if losses[j] > loss]
        best = max(earlier, key=lambda j: lengths[j], default=None)
        lengths.append(1 if best is None else lengths[best] + 1)
        before.append(best)
    place: int | None = int(np.argmax(lengths))
    valley = []
    while place is not None:
        valley.append(place)
        place = before[place]
    return valley[len(valley) // 2]


def stored() -> dict[str, Any]:
    """By task, its "environment" and its "seeds", each with a row per arm."""
    return storage.results_of("search", otherwise={})


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures the seeds that are missing; writes JSON after each."""
    options = command.options("search", __doc__, arguments, SEARCH_TASKS, seeds=SEEDS)
    for seed in range(int(options.seeds)):
        for name in options.names:
            found = stored().get(name, {"seeds": {}})
            if str(seed) in found["seeds"]:
                continue
            rows = measure_seed(SEARCH_TASKS[name], seed)
            seeds = {**found["seeds"], str(seed): rows}
            new = {"environment": machine.environment(), "seeds": seeds}
            storage.write("search", {**stored(), name: new})
            limit = rows[LIMIT]["error"]
            shown = ", ".join(f"{a}: {r['error']:.4g}" for a, r in rows.items())
            print(f"{name}, seed {seed}, limit {limit:.4g}: {shown}", flush=True)
    yield Stored("search")
