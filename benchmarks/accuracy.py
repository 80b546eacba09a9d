"""Time to accuracy: SGDPlus beside Keras's SGD and Adam, each with its own tuned rate.

`python -m benchmarks accuracy [task ...] [--seeds 5] [--stored-rates]`. For each task
and arm the learning rate is chosen by the same search on the validation part, seed 100;
then every arm trains once per seed, on fresh models, taking turns, all for the same
number of seconds. The clock runs from the call of `fit`, so tracing and compilation are
in it, and stands still during evaluation.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from typing import Any

import keras

from benchmarks import figures, record
from benchmarks.tasks import TASKS, Task
from benchmarks.training import Arm, Run, climb, fresh, windows
from keras_sgd_plus import SGDPlus

Results = dict[str, Any]  # task -> {"environment", "arms": {arm -> {...}}}

_SGD = functools.partial(keras.optimizers.SGD, momentum=0.9)
_ADAM = keras.optimizers.Adam
ARMS = (
    Arm("SGDPlus", SGDPlus),
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
FIRST = {  # of the README's table and figure, and what they are called there
    "SGDPlus": "**SGDPlus**",
    "Keras SGD, momentum 0.9, batch 32": "SGD, batch 32",
    "Keras SGD, momentum 0.9, batch 256": "SGD, batch 256",
    "Keras Adam, batch 32": "Adam, batch 32",
    "Keras Adam, batch 32, 32 steps per execution": "Adam, batch 32, 32 steps a call",
    "Keras Adam, batch 256": "Adam, batch 256",
}
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


def measure(task: Task, seeds: int, tried: dict[str, dict[float, float]]) -> Results:
    """Trains each arm once per seed, in turns.

    Args:
        task: what is learnt.
        seeds: how many.
        tried: what `tune` gives, by arm.
    """
    runs: dict[str, list[Run]] = {arm.id: [] for arm in ARMS}
    data = task.data()
    for seed in range(seeds):
        for i in range(len(ARMS)):
            arm = ARMS[(i + seed) % len(ARMS)]
            rate = best(tried[arm.rate_of or arm.id], task)
            run = fresh(task, arm).run(
                rate, seed, data.test, data.validation, seconds=task.seconds
            )
            runs[arm.id].append(run)
            print(f"  seed {seed}, {arm.id}: {run.last:.4f}", flush=True)
    return {
        arm.id: {
            "learning_rate": best(tried[arm.rate_of or arm.id], task),
            "tried": {f"{r:g}": v for r, v in tried.get(arm.id, {}).items()},
            "values": [[round(v, 5) for v in run.values[0]] for run in runs[arm.id]],
            "checks": [[round(v, 5) for v in run.values[1]] for run in runs[arm.id]],
            "seconds": [[round(s, 4) for s in run.seconds] for run in runs[arm.id]],
        }
        for arm in ARMS
    }


def epoch_seconds(found: dict[str, Any]) -> float:
    """Seconds of an epoch, the median over all but the first two of each run."""
    return statistics.median(s for run in found["seconds"] for s in run[2:] or run[1:])


def first_calls(found: dict[str, Any]) -> float:
    """Seconds that the first two epochs took more: tracing, compilation, threads."""
    start = statistics.median(sum(run[:2]) for run in found["seconds"])
    return start - 2 * epoch_seconds(found)


def final(task: Task, found: dict[str, Any]) -> list[float]:
    """The metric of each seed where that on the validation part was best."""
    choose = max if task.higher_is_better else min
    ends = []
    for values, checks in zip(found["values"], found["checks"], strict=True):
        seen = windows(checks)
        ends.append(windows(values)[seen.index(choose(seen))])
    return ends


def goals(task: Task, arms: dict[str, Any]) -> list[float]:
    """What the worst arm ends with, and the median arm, rounded to the easier side.

    Means over seeds. Made by rule, so that nobody can choose them.
    """
    ends = sorted(
        (statistics.mean(final(task, found)) for found in arms.values()),
        reverse=not task.higher_is_better,
    )
    places = (ends[0], statistics.median(ends))
    if task.higher_is_better:
        steps = [math.floor(end / task.step + 1e-9) for end in places]
    else:
        steps = [math.ceil(end / task.step - 1e-9) for end in places]
    return [round(step * task.step, 4) for step in steps]


def times_to(task: Task, found: dict[str, Any], goal: float) -> list[tuple[float, int]]:
    """Seconds and epochs to a goal, of each seed; infinite where it is not reached.

    It is reached at the first epoch whose mean with the next two is good enough.
    """
    times = []
    for values, seconds in zip(found["values"], found["seconds"], strict=True):
        enough = [task.reached(value, goal) for value in windows(values)]
        epochs = enough.index(True) + 1 if any(enough) else 0
        times.append((sum(seconds[:epochs]), epochs) if epochs else (math.inf, 0))
    return sorted(times)


def to_goal(task: Task, found: dict[str, Any], goal: float, epochs: bool = True) -> str:
    """The seconds to a goal as a cell of a table: median over seeds, and range.

    `>` is before the seconds that a run has had that does not get there.
    """
    times = times_to(task, found, goal)
    shown = [
        f"> {task.seconds:g}" if math.isinf(seconds) else f"{seconds:.1f}"
        for seconds, _ in times
    ]
    middle = times[len(times) // 2]
    reached = sum(seconds < math.inf for seconds, _ in times)
    if math.isinf(middle[0]):
        return f"{shown[-1]} s ({reached} of {len(times)})"
    after = f", {middle[1]} epoch{'s' * (middle[1] > 1)}" if epochs else ""
    return f"{shown[len(times) // 2]} s ({shown[0]} to {shown[-1]}){after}"


def table(task: Task, arms: dict[str, Any]) -> str:
    """A row per arm, in Markdown."""
    compared = "at least" if task.higher_is_better else "at most"
    aims = goals(task, arms)
    head = ["arm", "rate", "epochs", "first calls", "epoch", task.unit]
    head += [f"to {compared} {goal:g}" for goal in aims]
    rows = [
        [
            arm,
            f"{found['learning_rate']:g}",
            f"{statistics.median(len(values) for values in found['values']):g}",
            f"{first_calls(found):.1f} s",
            f"{epoch_seconds(found):.3f} s",
            record.spread(final(task, found), 3 if task.higher_is_better else 2),
            *(to_goal(task, found, goal) for goal in aims),
        ]
        for arm, found in arms.items()
    ]
    return record.markdown(head, rows)


def stored() -> Results:
    """What `results/accuracy.json` has, or nothing."""
    there = (record.RESULTS / "accuracy.json").exists()
    return record.read("accuracy")["results"] if there else {}


def _stored(name: str, arm: Arm) -> dict[float, float]:
    # What an earlier search tried.
    tried = stored()[name]["arms"][arm.id]["tried"]
    return {float(rate): value for rate, value in tried.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints tables, writes JSON and figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy")
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all if none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stored-rates", action="store_true", help="search nothing")
    options = parser.parse_args(arguments)
    for name in options.tasks or TASKS:
        task = TASKS[name]
        print(task.text, flush=True)
        tried = {
            arm.id: _stored(name, arm) if options.stored_rates else tune(task, arm)
            for arm in ARMS
            if not arm.rate_of
        }
        found = measure(task, options.seeds, tried)
        new = {"environment": record.environment(), "arms": found}
        record.write("accuracy", {**stored(), name: new})
    for name, found in stored().items():
        print(f"\n{TASKS[name].text}\n\n{table(TASKS[name], found['arms'])}")
        print(f"\n{record.line(found['environment'])}")
    figures.draw("accuracy")
    return 0
