"""Figures of quality: against seconds, epochs, learning rates and orders."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.accuracy import AVERAGED, FIRST, SHOWN
from benchmarks.quality.goals import final
from benchmarks.quality.search import ARMS, FOUND
from benchmarks.quality.search_tasks import SEARCH_TASKS
from benchmarks.quality.tasks import TASKS, Task
from benchmarks.report.figures.canvas import (
    BLUE,
    GREY,
    PURPLE,
    SKY,
    bare,
    colour_of,
    logarithmic,
    save,
)
from benchmarks.report.figures.rates import rates

# Dashes and a mark: an arm is told without its colour, too.
_DASHES_AND_MARKS = (("-", "o"), ("--", "*"), ("-.", "s"), (":", "D"), ("-.", "P"))
_LOOKS = dict(zip(SHOWN, (*_DASHES_AND_MARKS, (":", "d")), strict=True))
Found = dict[str, Any]


def _band(axes: Any, at: Any, runs: np.ndarray, **style: Any) -> None:
    """Mean over seeds with their range shaded; `runs` is (seeds, places)."""
    axes.plot(at, runs.mean(0), markersize=4, **style)
    shade = {"color": style["color"], "alpha": 0.12, "lw": 0}
    axes.fill_between(at, runs.min(0), runs.max(0), **shade)


def _line(axes: Any, task: Task, arm: str, found: Found, over: str) -> None:
    """An arm against seconds or epochs, for as long as all of its seeds have run.

    A run that has diverged keeps its last value.
    """
    whole = [run for run in found["seconds"] if sum(run) >= task.seconds]
    epochs = min(len(run) for run in whole)
    values = np.array([(v + epochs * v[-1:])[:epochs] for v in found["values"]])
    at = np.arange(1, epochs + 1, dtype="float64")
    if over == "seconds":
        at = np.mean([np.cumsum(run[:epochs]) for run in whole], axis=0)
    dashes, mark = _LOOKS[arm]
    style: dict[str, Any] = {"linestyle": dashes, "marker": mark}
    style["color"] = colour_of(arm)
    _band(axes, at, values, label=arm, markevery=max(1, len(at) // 8), **style)


def _frame(axes: Any, task: Task, arms: dict[str, Found]) -> None:
    """Cuts off values that are much worse than the end of every arm."""
    ends = [end for found in arms.values() for end in final(task, found)]
    starts = [run[0] for found in arms.values() for run in found["values"]]
    if task.higher_is_better:
        axes.set_ylim(max(min(starts), max(ends) - 0.12), max(ends) + 0.01)
    else:
        room = max(ends) - min(ends)
        axes.set_ylim(min(ends) - 0.1 * room, max(ends) + 0.5 * room)


def _legend_above(figure: Any, axes: Any) -> None:
    """One legend for all panels: that of `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    style = {"ncols": 2, "frameon": False, "fontsize": 9}
    figure.legend(handles, labels, loc="upper center", **style)


def accuracy(results: dict[str, Found]) -> None:
    """A row per task: against seconds (compilation in them) and against epochs."""
    import matplotlib.pyplot as plt

    tasks = [name for name in TASKS if name in results]
    figure, grid = plt.subplots(
        len(tasks), 2, figsize=(11, 3.4 * len(tasks)), squeeze=False
    )
    for name, panels in zip(tasks, grid, strict=True):
        task, arms = TASKS[name], results[name]["arms"]
        for axes, over in zip(panels, ("seconds", "epochs"), strict=True):
            for arm in SHOWN:
                _line(axes, task, arm, arms[arm], over)
            _frame(axes, task, {arm: arms[arm] for arm in SHOWN})
            logarithmic(axes)
            axes.set_ylabel(task.unit)
        panels[0].set_xlabel("seconds since the call of fit, compilation included")
        panels[1].set_xlabel("epochs")
        panels[0].set_title(task.text, loc="left", fontsize=10)
        bare(*panels)
    _legend_above(figure, grid[0, 0])
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.24 / len(tasks)))
    save(figure, "accuracy")
    _first(results)


def _first(results: dict[str, Found]) -> None:
    """The README's figure: the tasks against seconds, a few arms."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 7))
    for axes, name in zip(panels.flat, results, strict=False):
        task, arms = TASKS[name], results[name]["arms"]
        for arm in (*FIRST, AVERAGED):
            _line(axes, task, arm, arms[arm], "seconds")
        _frame(axes, task, {arm: arms[arm] for arm in SHOWN})
        logarithmic(axes)
        axes.set_ylabel(task.unit)
        axes.set_xlabel("seconds since the call of fit, compilation included")
        axes.set_title(task.text, fontsize=10)
        bare(axes)
    _legend_above(figure, panels[0, 0])
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    save(figure, "first")


def robustness(results: dict[str, Found]) -> None:
    """Accuracy against the learning rate: by arm and problem, and by size of update."""
    rates(results)
    _sizes(results)


def _sizes(results: dict[str, Found]) -> None:
    """Accuracy against the learning rate, a line per size of update."""
    import matplotlib.pyplot as plt

    points: list[Found] = results["sizes"]["points"]
    sizes = list(dict.fromkeys(p["size"] for p in points))
    momenta = list(dict.fromkeys(p["momentum"] for p in points))
    dashes_and_marks = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"))
    colours = (BLUE, SKY, PURPLE, GREY)
    styles = dict(zip(sizes, dashes_and_marks, strict=True))
    shades = dict(zip(sizes, colours, strict=True))
    figure, panels = plt.subplots(1, len(momenta), figsize=(10, 3.9), sharey=True)
    for axes, momentum in zip(panels, momenta, strict=True):
        for size in sizes:
            here = [p for p in points if (p["size"], p["momentum"]) == (size, momentum)]
            rates = [p["rate"] for p in here]
            dashes, mark = styles[size]
            style = {"linestyle": dashes, "marker": mark, "color": shades[size]}
            label = f"{size} example{'s' * (size > 1)} per update"
            values = np.array([p["values"] for p in here]).T
            _band(axes, rates, values, label=label, **style)
        axes.set(xscale="log", xlabel="learning rate (per update)")
        axes.set_title(f"momentum {momentum:g}", fontsize=10)
    panels[0].set_ylabel("validation accuracy after 10 epochs")
    panels[0].set_yscale("logit")  # so that 0.93 and 0.95 are apart
    ticks = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.93, 0.95)
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].yaxis.set_minor_formatter("")
    panels[0].legend(frameon=False, fontsize=8)
    bare(*panels)
    figure.tight_layout()
    save(figure, "robustness")


def order(results: dict[str, list[list[float]]]) -> None:
    """Test accuracy against epochs, a line per order."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4))
    styles = (("-", "o", BLUE), ("--", "s", SKY), (":", "D", PURPLE))
    for (name, runs), (dashes, mark, colour) in zip(
        results.items(), styles, strict=True
    ):
        values = np.array(runs)
        epochs = range(1, values.shape[1] + 1)
        style = {"linestyle": dashes, "marker": mark, "color": colour}
        _band(axes, epochs, values, label=name, **style)
    axes.set(xlabel="epochs", ylabel="test accuracy", ylim=(0, 1))
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.55))
    bare(axes)
    figure.tight_layout()
    save(figure, "order")


_SHOWN = ("noise", "cnn", "flights")  # tasks of development


def search(results: dict[str, Found]) -> None:
    """Losses over rates, with the rate that is found, and the errors of arms beside."""
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(_SHOWN), figsize=(10, 6))
    for column, name in enumerate(_SHOWN):
        if name not in results:
            continue
        above, below = rows[0][column], rows[1][column]
        for seed in results[name]["seeds"].values():
            found = seed[FOUND]
            at, losses = zip(*found["losses"], strict=True)
            above.plot(at, losses, color=BLUE, alpha=0.5, marker="o", markersize=3)
            above.axvline(found["rate"], color=GREY, linestyle="--", lw=1)
        smallest = min(loss for _, loss in found["losses"])
        above.set(xscale="log", yscale="log", ylim=(0.8 * smallest, None))
        above.set(title=SEARCH_TASKS[name].text, xlabel="learning rate")
        arms = [arm for arm in ARMS if arm in found or arm in seed]
        for place, arm in enumerate(arms):
            errors = [each[arm]["error"] for each in results[name]["seeds"].values()]
            colour = BLUE if arm == FOUND else GREY
            below.plot(errors, [place] * len(errors), "o", color=colour, alpha=0.6)
        below.set(xlabel="test error")
        below.locator_params(axis="x", nbins=4)
        below.set_yticks(range(len(arms)), arms if not column else [""] * len(arms))
        below.invert_yaxis()
    rows[0][0].set_ylabel("loss before each update")
    figure.tight_layout()
    save(figure, "search")
