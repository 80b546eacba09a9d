"""Time to accuracy: SGDPlus beside Keras's SGD and Adam, each with its own tuned rate.

`python -m benchmarks accuracy [task ...] [--seeds 5]`. For each task and arm the
learning rate is chosen by the same search on the validation part (seed 100); then every
arm trains once per seed, on fresh models, taking turns. The clock runs from the call of
`fit`, so tracing and compilation are in it, and stands still during evaluation.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from typing import Any

import keras

from benchmarks import figures, record
from benchmarks.tasks import TASKS, Task
from benchmarks.training import Arm, Run, climb, fresh, smoothed
from keras_sgd_plus import SGDPlus

Results = dict[str, Any]  # task -> {"environment", "arms": {arm -> {...}}}

_SGD = functools.partial(keras.optimizers.SGD, momentum=0.9)
_ADAM = keras.optimizers.Adam
ARMS = (
    Arm("SGDPlus", SGDPlus),
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
FIRST = (  # of the README's table and figure
    "SGDPlus",
    "Keras SGD, momentum 0.9, batch 32",
    "Keras Adam, batch 32",
    "Keras Adam, batch 32, 32 steps per execution",
    "Keras Adam, batch 256",
)
_SEARCH_SEED = 100


def tune(task: Task, arm: Arm) -> dict[float, float]:
    """Learning rates tried and their validation metric."""
    trainer = fresh(task, arm)
    part = task.data().validation

    def score(rate: float) -> float:
        value = trainer.run(rate, _SEARCH_SEED, part).last
        print(f"  {arm.id}: rate {rate:g} gives {value:.4f}", flush=True)
        return value

    return climb(score, task.higher_is_better)


def best(tried: dict[float, float], task: Task) -> float:
    """The rate with the best score."""
    choose = max if task.higher_is_better else min
    return choose(tried, key=lambda rate: tried[rate])


def measure(task: Task, seeds: int) -> Results:
    """Tunes every arm, then trains each once per seed, in turns."""
    tried = {arm.id: tune(task, arm) for arm in ARMS if not arm.rate_of}
    runs: dict[str, list[Run]] = {arm.id: [] for arm in ARMS}
    for seed in range(seeds):
        for i in range(len(ARMS)):
            arm = ARMS[(i + seed) % len(ARMS)]
            rate = best(tried[arm.rate_of or arm.id], task)
            run = fresh(task, arm).run(rate, seed, task.data().test)
            runs[arm.id].append(run)
            spent = sum(run.seconds)
            print(f"  seed {seed}, {arm.id}: {run.last:.4f}, {spent:.1f} s", flush=True)
    return {
        arm.id: {
            "learning_rate": best(tried[arm.rate_of or arm.id], task),
            "tried": {f"{r:g}": v for r, v in tried.get(arm.id, {}).items()},
            "values": [[round(v, 5) for v in run.values] for run in runs[arm.id]],
            "seconds": [[round(s, 4) for s in run.seconds] for run in runs[arm.id]],
        }
        for arm in ARMS
    }


def epoch_seconds(found: dict[str, Any]) -> float:
    """Seconds of an epoch, the median over all but the first of each run."""
    return statistics.median(s for run in found["seconds"] for s in run[1:])


def first_call(found: dict[str, Any]) -> float:
    """Seconds that the first epoch took more: tracing and compilation."""
    return statistics.median(run[0] for run in found["seconds"]) - epoch_seconds(found)


def final(found: dict[str, Any]) -> list[float]:
    """The metric of each seed at the end."""
    return [smoothed(values)[-1] for values in found["values"]]


def times_to(task: Task, found: dict[str, Any], goal: float) -> list[tuple[float, int]]:
    """Seconds and epochs to a goal, of the seeds that reach it.

    It is reached when the smoothed metric is.
    """
    reached = []
    for values, seconds in zip(found["values"], found["seconds"], strict=True):
        enough = [task.reached(value, goal) for value in smoothed(values)]
        epochs = [epoch for epoch, yes in enumerate(enough, 1) if yes]
        if epochs:
            reached.append((sum(seconds[: epochs[0]]), epochs[0]))
    return reached


def to_goal(task: Task, found: dict[str, Any], which: int) -> str:
    """Seconds and epochs to the goal of that position, as a cell of a table.

    A mean over the seeds that get there would flatter an arm of which some do not: then
    the cell has their number, and the seconds that all have had.
    """
    reached = times_to(task, found, task.goals[which])
    if len(reached) == len(found["values"]):
        seconds, epochs = zip(*reached, strict=True)
        mean = statistics.mean(epochs)
        return f"{record.spread(list(seconds), 1)} s ({mean:.1f})"
    budget = statistics.mean(sum(run) for run in found["seconds"])
    return f"{len(reached)} of {len(found['values'])} seeds in {budget:.1f} s"


def table(task: Task, arms: dict[str, Any]) -> str:
    """A row per arm, in Markdown."""
    compared = "at least" if task.higher_is_better else "at most"
    goals = [f"to {compared} {goal:g} (epochs)" for goal in task.goals]
    head = ["arm", "rate", "epochs", "first call", "epoch", task.unit, *goals]
    rows = [
        [
            arm,
            f"{found['learning_rate']:g}",
            str(max(len(values) for values in found["values"])),
            f"{first_call(found):.1f} s",
            f"{epoch_seconds(found):.2f} s",
            record.spread(final(found), 3 if task.higher_is_better else 2),
            *(to_goal(task, found, which) for which in range(len(task.goals))),
        ]
        for arm, found in arms.items()
    ]
    return record.markdown(head, rows)


def stored() -> Results:
    """What `results/accuracy.json` has, or nothing."""
    there = (record.RESULTS / "accuracy.json").exists()
    return record.read("accuracy")["results"] if there else {}


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints tables, writes JSON and figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy")
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all if none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    for name in [] if options.tables else options.tasks or TASKS:
        print(TASKS[name].text, flush=True)
        found = measure(TASKS[name], options.seeds)
        new = {"environment": record.environment(), "arms": found}
        record.write("accuracy", {**stored(), name: new})
    for name, found in stored().items():
        print(f"\n{TASKS[name].text}\n\n{table(TASKS[name], found['arms'])}")
        print(f"\n{record.line(found['environment'])}")
    figures.draw("accuracy")
    return 0
