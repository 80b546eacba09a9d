"""Tables of `accuracy`, `untuned`, `order` and `linear`."""

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
from benchmarks.quality.tasks import TASKS, Task
from benchmarks.quality.untuned import RATES as untuned_rates
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


def of_untuned_ends(results: dict[str, Any]) -> str:
    """A row per optimizer: the end of each task, and the goals that it reaches."""
    names = [name for name in TASKS if name in results]
    rows = []
    for arm in untuned_rates:
        cells, reached, wanted = [f"`{arm.removeprefix('Keras ')}`"], 0, 0
        for name in names:
            task, found = TASKS[name], results[name]["arms"][arm]
            digits = 3 if task.higher_is_better else 2
            cells.append(markdown.spread(final(task, found), digits))
            for goal in goals(task, stored()[name]["arms"]):
                reached += math.isfinite(median_time(task, found, goal))
                wanted += 1
        rows.append([*cells, f"{reached} of {wanted}"])
    head = [": ".join(TASKS[name].short) for name in names]
    table = markdown.table(["optimizer", *head, "goals reached"], rows)
    return f"{table}\n\n{machine.line(*(results[n]['environment'] for n in names))}"


def of_untuned(results: dict[str, Any]) -> str:
    """A row per optimizer, for each task the end and the times to both goals."""
    names = [name for name in TASKS if name in results]
    aims = {name: goals(TASKS[name], stored()[name]["arms"]) for name in names}
    head = ["optimizer", "rate"]
    for name in names:
        short, unit = TASKS[name].short
        head += [f"{short}: {unit}", *(f"to {goal:g}" for goal in aims[name])]
    rows = []
    for arm, rate in untuned_rates.items():
        cells = [f"`{arm.removeprefix('Keras ')}`", f"{rate:g}"]
        for name in names:
            task, found = TASKS[name], results[name]["arms"][arm]
            digits = 3 if task.higher_is_better else 2
            cells.append(markdown.spread(final(task, found), digits))
            cells += [to_goal(task, found, goal, epochs=False) for goal in aims[name]]
        rows.append(cells)
    environments = [results[name]["environment"] for name in names]
    return f"{markdown.table(head, rows)}\n\n{machine.line(*environments)}"


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


untuned = markdown.of_stored(of_untuned)
order = markdown.of_stored(of_orders)
