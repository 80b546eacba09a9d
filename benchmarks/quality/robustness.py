"""Robustness to the learning rate, and how a recipe for batches of 32 carries over.

`python -m benchmarks robustness [--seeds 3]`: the MLP on MNIST, 10 epochs, momentum 0
and 0.9, learning rates over four decades, updates of 1, 8, 32 and 256 examples. All
arms run in SGDPlus's loop, which computes what Keras computes at that batch size
(`examples_per_update`). They see as many examples, so larger updates are fewer.
Accuracy is that on the validation part. The second part takes the best rate for 32
examples with momentum 0.9, carries it over to one example in four ways, and tests with
other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.quality.tasks import TASKS, Task
from benchmarks.quality.training import Arm, fresh, rate_at
from benchmarks.shared import storage
from benchmarks.shared.finding import Stored
from keras_sgd_plus import SGDPlus

SIZES = (1, 8, 32, 256)
MOMENTA = (0.0, 0.9)
RATES = tuple(rate_at(place) for place in range(-8, 1))  # 0.0001 to 1
EPOCHS = 10
# Learning rate and momentum for one example, from those for 32. With momentum m steps
# add up to rate / (1 - m): all but the first cover the same distance in 32 examples.
PORTS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "both unchanged": lambda rate, m: (rate, m),
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


def _arm(size: int, momentum: float) -> Arm:
    return Arm(
        f"{size} per update, momentum {momentum:g}",
        lambda rate: SGDPlus(rate, momentum=momentum, examples_per_update=size),
    )


def _swept(task: Task, seeds: int) -> list[dict[str, Any]]:
    """Validation accuracies by momentum, examples per update and learning rate."""
    points = []
    for momentum in MOMENTA:
        for size in SIZES:
            # One trainer for all rates and seeds: only the size makes it compile again.
            trainer = fresh(task, _arm(size, momentum))
            for rate in RATES:
                runs = [
                    trainer.run(rate, s, task.data().validation) for s in range(seeds)
                ]
                values = [round(run.last, 5) for run in runs]
                point = {"momentum": momentum, "size": size, "rate": rate}
                points.append({**point, "values": values})
                print(f"  {trainer.arm.id}, rate {rate:g}: {values}", flush=True)
    return points


def _ported(task: Task, rate: float, seeds: int) -> list[dict[str, Any]]:
    """Test accuracies of a recipe for 32 examples, and of its forms for one."""
    recipe = {"name": "the recipe: 32 per update", "size": 32, "rate": rate}
    rows = [{**recipe, "momentum": 0.9}]
    for name, convert in PORTS.items():
        new_rate, momentum = convert(rate, 0.9)
        rows.append({"name": name, "size": 1, "rate": new_rate, "momentum": momentum})
    for row in rows:
        trainer = fresh(task, _arm(row["size"], row["momentum"]))
        part = task.data().test
        # Other seeds than those that chose the recipe.
        runs = [trainer.run(row["rate"], 50 + s, part) for s in range(seeds)]
        row["values"] = [round(run.last, 5) for run in runs]
        print(f"  {row['name']}: {row['values']}", flush=True)
    return rows


def means(
    points: list[dict[str, Any]], size: int, momentum: float
) -> dict[float, float]:
    """By learning rate, the mean accuracy over seeds."""
    return {
        p["rate"]: statistics.mean(p["values"])
        for p in points
        if (p["size"], p["momentum"]) == (size, momentum)
    }


def measure(arguments: list[str]) -> Iterator[Stored]:
    """Measures both parts; writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks robustness")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    task = dataclasses.replace(TASKS["mlp"], epochs=EPOCHS)
    points = _swept(task, options.seeds)
    recipe = means(points, 32, 0.9)
    ported = _ported(task, max(recipe, key=lambda r: recipe[r]), options.seeds)
    storage.write("robustness", {"sweep": points, "port": ported})
    yield Stored("robustness")
