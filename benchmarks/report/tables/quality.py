"""Tables of `accuracy`, `search`, `order` and `linear`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.quality.goals import (
    epoch_seconds,
    final,
    first_calls,
    goals,
    median_time,
    stored,
    times_to,
)
from benchmarks.quality.linear import WAYS, Compared
from benchmarks.quality.order import EPOCHS
from benchmarks.quality.search import ARMS, LIMIT
from benchmarks.quality.search_tasks import SEARCH_TASKS, SearchTask
from benchmarks.quality.tasks import TASKS, Task
from benchmarks.report.tables import markdown
from benchmarks.report.tables.rates import robustness as robustness
from benchmarks.shared import machine
from benchmarks.shared.finding import Finding, Stored


def accuracy(findings: Iterable[Stored]) -> Iterator[str]:
    """A table per task, of this run or stored by an earlier one."""
    for _ in findings:  # one, when all tasks of the run are stored
        for name, found in stored().items():
            task = TASKS[name]
            yield f"\n{task.text}\n\n{of_arms(task, found['arms'])}"
            yield f"\n{machine.line(found['environment'])}"


def of_arms(task: Task, arms: dict[str, Any]) -> str:
    """A row per arm of a task."""
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
            markdown.spread(final(task, found), 3 if task.higher_is_better else 2),
            *(to_goal(task, found, goal) for goal in aims),
        ]
        for arm, found in arms.items()
    ]
    return markdown.table(head, rows)


def to_goal(task: Task, found: dict[str, Any], goal: float, epochs: bool = True) -> str:
    """The seconds to a goal as a cell of a table: median over seeds, and range.

    `> 5` stands for a run that does not reach the goal in its 5 seconds.
    """
    times = times_to(task, found, goal)
    shown = [
        f"> {task.seconds:g}" if math.isinf(seconds) else f"{seconds:.1f}"
        for seconds, _ in times
    ]
    # Sorted, those that do not get there last: the middle one is the median, even if
    # others are infinite.
    middle = times[len(times) // 2]
    reached = sum(seconds < math.inf for seconds, _ in times)
    if math.isinf(middle[0]):
        return f"{shown[-1]} s ({reached} of {len(times)})"
    after = f", {middle[1]} epoch{'s' * (middle[1] > 1)}" if epochs else ""
    return f"{shown[len(times) // 2]} s ({shown[0]} to {shown[-1]}){after}"


def median_to_goal(task: Task, found: dict[str, Any], goal: float) -> str:
    """The seconds to a goal, the median over seeds, or that it takes longer."""
    seconds = median_time(task, found, goal)
    return f"> {task.seconds:g} s" if math.isinf(seconds) else f"{seconds:.1f} s"


def search(findings: Iterable[Stored]) -> Iterator[str]:
    """The summary on the tasks that were held out and on the others, then each task."""
    for each in findings:
        results = each.read()["results"]
        for is_held_out in (True, False):
            yield "\n" + of_search(results, is_held_out)
        yield "\n" + of_search_tasks(results)


def scores(found: dict[str, Any], task: SearchTask, arm: str) -> list[float]:
    """The error of an arm over that of the limit, for each seed.

    Accuracies have 0.005 added to both errors, or few mistakes would count as many.
    """
    more = 0.005 if task.metric == "accuracy" else 0.0

    def of(row: dict[str, Any]) -> float:
        error = (row[arm]["error"] + more) / (row[LIMIT]["error"] + more)
        return error if math.isfinite(error) else _FAILED

    return [of(row) for row in found["seeds"].values()]


_FAILED = 100.0  # the score of a run that ends in NaN


def _summary(results: dict[str, Any], arm: str, is_held_out: bool) -> list[float]:
    # Of each task, the geometric mean over its seeds.
    return [
        statistics.geometric_mean(scores(results[name], task, arm))
        for name, task in SEARCH_TASKS.items()
        if task.is_held_out == is_held_out and name in results
    ]


def of_search(results: dict[str, Any], is_held_out: bool) -> str:
    """A row per arm: the geometric mean over tasks, the worst task, and seconds."""
    kind = "tasks that were held out" if is_held_out else "tasks of development"
    head = ["optimizer", f"score, {kind}", "worst task", "CPU seconds"]
    rows = []
    for arm in ARMS:
        by_task = _summary(results, arm, is_held_out)
        if not by_task:
            return ""
        seconds = [
            statistics.mean(row[arm].get("seconds", math.nan) for row in rows_of)
            for name, task in SEARCH_TASKS.items()
            if task.is_held_out == is_held_out and name in results
            for rows_of in [results[name]["seeds"].values()]
        ]
        total = sum(seconds)
        rows.append(
            [
                arm,
                f"{statistics.geometric_mean(by_task):.2f}",
                f"{max(by_task):.2f}",
                "" if math.isnan(total) else f"{total:.0f}",
            ]
        )
    return markdown.table(head, rows, right=(1, 2, 3))


def of_search_tasks(results: dict[str, Any]) -> str:
    """A row per task: the error of the limit, and the score of each arm."""
    arms = [arm for arm in ARMS if arm != LIMIT]
    rows = []
    for name, task in SEARCH_TASKS.items():
        if name not in results:
            continue
        found = results[name]
        limit = [row[LIMIT]["error"] for row in found["seeds"].values()]
        means = [statistics.geometric_mean(scores(found, task, arm)) for arm in arms]
        held_out = ", held out" if task.is_held_out else ""
        cells = [f"{mean:.2f}" for mean in means]
        rows.append([task.text + held_out, f"{statistics.mean(limit):.4g}", *cells])
    return markdown.table(["task", "error of the best", *arms], rows)


def of_orders(results: dict[str, list[list[float]]]) -> str:
    """Test accuracy after some epochs, a row per order."""
    epochs = (1, 2, 4, EPOCHS)
    head = ["order", *(f"after {e} epoch{'s' * (e > 1)}" for e in epochs)]
    rows = [
        [name, *(markdown.spread([run[e - 1] for run in runs], 3) for e in epochs)]
        for name, runs in results.items()
    ]
    return markdown.table(head, rows)


def linear(findings: Iterable[Finding]) -> Iterator[str]:
    """A line per problem, then all of them with the times."""
    for each in findings:
        if isinstance(each, Compared):
            yield f"  {each.problem}: {each.difference:.1e} of {each.largest:.2g}"
        elif isinstance(each, Stored):
            yield "\n" + of_problems(each.read()["results"])


def of_problems(results: dict[str, Any]) -> str:
    """A row per problem."""
    head = ["data", "largest difference", "largest coefficient", *WAYS.values()]
    rows = []
    for name, found in results.items():
        times = [statistics.median(found[k]) * 1e3 for k in WAYS]
        cells = [f"{found['difference']:.0e}", f"{found['largest']:.2g}"]
        rows.append([name, *cells, *(f"{ms:.2f} ms" for ms in times)])
    return markdown.table(head, rows)


order = markdown.of_stored(of_orders)
