"""From the stored runs of `accuracy`: how good arms end, and when they reach a goal."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.quality.tasks import Task
from benchmarks.quality.training import windows
from benchmarks.shared import storage


def stored() -> dict[str, Any]:
    """By task, its "environment" and its "arms", each with its runs; may be empty."""
    return storage.results_of("accuracy", otherwise={})


def epoch_seconds(found: dict[str, Any]) -> float:
    """Seconds of an epoch, the median over all but the first two of each run."""
    return statistics.median(s for run in found["seconds"] for s in run[2:] or run[1:])


def first_calls(found: dict[str, Any]) -> float:
    """Seconds that the first two epochs took more: tracing, compilation, threads."""
    start = statistics.median(sum(run[:2]) for run in found["seconds"])
    return start - 2 * epoch_seconds(found)


def final(task: Task, found: dict[str, Any]) -> list[float]:
    """The test metric of each seed, at the epoch whose validation metric is best."""
    ends = []
    for values, checks in zip(found["values"], found["checks"], strict=True):
        seen = windows(checks)
        ends.append(windows(values)[seen.index(task.best_of(seen))])
    return ends


def goals(task: Task, arms: dict[str, Any]) -> list[float]:
    """The ends of the worst arm and of the median arm, rounded to the easier side.

    Ends are means over seeds. A rule makes the goals, so that nobody can choose them.
    Two that are equal once rounded are one goal.
    """
    ends = sorted(
        (statistics.mean(final(task, found)) for found in arms.values()),
        reverse=not task.higher_is_better,
    )
    places = (ends[0], statistics.median(ends))
    # 1e-9: an end that lies on a step must not fall to the next one by rounding.
    if task.higher_is_better:
        steps = [math.floor(end / task.step + 1e-9) for end in places]
    else:
        steps = [math.ceil(end / task.step - 1e-9) for end in places]
    return list(dict.fromkeys(round(step * task.step, 4) for step in steps))


def median_time(task: Task, found: dict[str, Any], goal: float) -> float:
    """Seconds to a goal, of the median seed; infinite where it is not reached."""
    times = times_to(task, found, goal)
    return times[len(times) // 2][0]


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
