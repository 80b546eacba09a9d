"""Robustness to the learning rate, and how a recipe for batches of 32 carries over.

`python -m benchmarks robustness [part ...] [--missing]`, each part stored when it is
done; `--missing` leaves out what this very code has measured:

- a problem of `problems.py`: five decades of learning rates, momentum 0 and 0.9; plain
  SGD, capped by `max_loss_fraction`, clipped, averaged, with linear decay. The targets
  are judged on what is stored.
- `sizes`: the MLP on MNIST, 10 epochs, updates of 1, 8, 32 and 256 examples, all in
  SGDPlus's loop, which computes what Keras computes at that batch size
  (`examples_per_update`). They see as many examples, so larger updates are fewer.
  Accuracy is that on the validation part.
- `port`: the best rate of `sizes` for 32 examples with momentum 0.9, carried over to
  one example in several ways, and tested with other seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import keras

from benchmarks.quality import rates
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.rate_targets import verdicts
from benchmarks.quality.tasks import TASKS
from benchmarks.quality.training import Arm, fresh, rate_at
from benchmarks.shared import command, machine, storage
from benchmarks.shared.finding import Finding, Stored, Verdicts
from keras_sgd_plus import SGDPlus

SIZES = (1, 8, 32, 256)
MOMENTA = (0.0, 0.9)
RATES = tuple(rate_at(place) for place in range(-8, 1))  # 0.0001 to 1
EPOCHS = 10
_SEEDS = 3
_TASK = dataclasses.replace(TASKS["mlp"], epochs=EPOCHS)
# Learning rate and momentum for one example, from those for 32. With momentum m steps
# add up to rate / (1 - m): all but "both unchanged" cover the same distance.
PORTS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "both unchanged": lambda rate, m: (rate, m),
    "both unchanged, `max_loss_fraction=1`": lambda rate, m: (rate, m),
    "rate / 32, momentum unchanged": lambda rate, m: (rate / 32, m),
    "rate / (32 (1 - momentum)), no momentum": lambda rate, m: (
        rate / (32 * (1 - m)),
        0.0,
    ),
    "momentum ** (1 / 32), rate to match": lambda rate, m: (
        rate / (1 - m) * (1 - m ** (1 / 32)) / 32,
        m ** (1 / 32),
    ),
}
RECIPES = ("the recipe: Keras SGD, batch 32", "the recipe: 32 per update")


def _arm(size: int, momentum: float, fraction: float | None = None) -> Arm:
    make = functools.partial(
        SGDPlus, momentum=momentum, examples_per_update=size, max_loss_fraction=fraction
    )
    return Arm(f"{size} per update, momentum {momentum:g}", make)


def _swept() -> dict[str, Any]:
    """Validation accuracies by momentum, examples per update and learning rate."""
    points = []
    for momentum in MOMENTA:
        for size in SIZES:
            # One trainer for all rates and seeds: only the size makes it compile again.
            trainer = fresh(_TASK, _arm(size, momentum))
            part = _TASK.data().validation
            for rate in RATES:
                runs = [trainer.run(rate, seed, part) for seed in range(_SEEDS)]
                values = [round(run.last, 5) for run in runs]
                point = {"momentum": momentum, "size": size, "rate": rate}
                points.append({**point, "values": values})
                print(f"  {trainer.arm.id}, rate {rate:g}: {values}", flush=True)
    return {"points": points}


def _ported() -> dict[str, Any]:
    """Test accuracies of a recipe for 32 examples, and of its forms for one."""
    tried = means(stored()["sizes"]["points"], 32, 0.9)
    rate = max(tried, key=lambda rate: tried[rate])
    keras_sgd = functools.partial(keras.optimizers.SGD, momentum=0.9)
    arms = [Arm(RECIPES[0], keras_sgd, batch_size=32), _arm(32, 0.9)]
    rows = [{"name": name, "rate": rate, "momentum": 0.9} for name in RECIPES]
    for name, convert in PORTS.items():
        new_rate, momentum = convert(rate, 0.9)
        rows.append({"name": name, "rate": new_rate, "momentum": momentum})
        arms.append(_arm(1, momentum, 1.0 if "max_loss_fraction" in name else None))
    for row, arm in zip(rows, arms, strict=True):
        trainer = fresh(_TASK, arm)
        part = _TASK.data().test
        # Other seeds than those that chose the recipe.
        runs = [trainer.run(row["rate"], 50 + s, part) for s in range(_SEEDS)]
        row["values"] = [round(run.last, 5) for run in runs]
        print(f"  {row['name']}: {row['values']}", flush=True)
    return {"rows": rows}


def means(
    points: list[dict[str, Any]], size: int, momentum: float
) -> dict[float, float]:
    """By learning rate, the mean accuracy over seeds."""
    return {
        p["rate"]: statistics.mean(p["values"])
        for p in points
        if (p["size"], p["momentum"]) == (size, momentum)
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: functools.partial(rates.measured, PROBLEMS[name]) for name in PROBLEMS},
    "sizes": _swept,
    "port": _ported,
}


def stored() -> dict[str, Any]:
    """By part, its "environment" and what was measured; may be empty."""
    return storage.results_of("robustness", otherwise={})


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Measures the parts; writes JSON after each, which keeps the others."""
    options = command.options("robustness", __doc__, arguments, PARTS, missing=False)
    for name in options.names:
        if options.missing and machine.is_fresh(stored().get(name)):
            print(f"{name} is stored.", flush=True)
            continue
        print(name, flush=True)
        found = {"environment": machine.environment(), **PARTS[name]()}
        storage.write("robustness", {**stored(), name: found})
    yield Stored("robustness")
    yield Verdicts(verdicts(stored()))
