"""The figure of `robustness`: scores against the learning rate, by problem and arm."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.problems import PROBLEMS, Problem
from benchmarks.quality.rates import AVERAGED, CLIPPED, DECAYED, MOMENTA, PLAIN, capped
from benchmarks.report.figures.canvas import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    bare,
    save,
)

# As in the other figures plain SGDPlus is the blue line. Colour, dashes, mark, width.
_STYLES = {
    PLAIN: (BLUE, "-", "o", 1.4),
    AVERAGED: (SKY, "-.", "s", 1.0),
    DECAYED: (BLACK, ":", "D", 1.0),
    CLIPPED: (GREY, "-.", "^", 1.0),
}
_CAPPED = {  # by the fraction
    1.0: (PURPLE, "--", "*", 2.0),
    0.3: (ORANGE, "--", "P", 1.4),
}
_SMALLER = (VERMILION, ":", "X", 1.4)
_LABELS = {
    PLAIN: "plain SGD",
    AVERAGED: "averaged (AverageWeights)",
    CLIPPED: "clipped (global_clipnorm=1)",
}
_TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def rates(results: dict[str, Any]) -> None:
    """A row per problem, a column per momentum, a line per arm; the range is shaded."""
    import matplotlib.pyplot as plt

    names = [name for name in PROBLEMS if name in results]
    shape = {"figsize": (10, 2.3 * len(names)), "sharex": True, "sharey": "row"}
    figure, grid = plt.subplots(len(names), len(MOMENTA), squeeze=False, **shape)
    for name, panels in zip(names, grid, strict=True):
        problem, found = PROBLEMS[name], results[name]
        for axes, momentum in zip(panels, MOMENTA, strict=True):
            styles = _styles(found["fractions"])
            for row in found["arms"]:
                if row["momentum"] == momentum and row["arm"] in styles:
                    _line(axes, row, styles[row["arm"]])
            axes.set_xscale("log")
        _frame(panels[0], problem)
        panels[0].set_title(problem.text, loc="left", fontsize=9)
        bare(*panels)
    for axes, momentum in zip(grid[-1], MOMENTA, strict=True):
        axes.set_xlabel(f"learning rate, momentum {momentum:g}")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    style = {"ncols": 3, "frameon": False, "fontsize": 9, "loc": "upper center"}
    figure.legend(handles.values(), handles.keys(), **style)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.6 / (2.3 * len(names))))
    save(figure, "rates")


def _styles(fractions: list[float]) -> dict[str, tuple[str, str, str, float]]:
    """Colour, dashes, mark and width of each arm that is drawn."""
    return _STYLES | {capped(f): _CAPPED.get(f, _SMALLER) for f in fractions}


def _line(axes: Any, row: dict[str, Any], style: tuple[str, str, str, float]) -> None:
    # A run that ended as NaN leaves a gap.
    values = np.array(row["test"], dtype="float64")
    colour, dashes, mark, width = style
    line = {"color": colour, "linestyle": dashes, "marker": mark, "linewidth": width}
    label = _LABELS.get(row["arm"], row["arm"].replace("capped ", "max_loss_fraction="))
    axes.plot(row["rates"], values.mean(0), markersize=4, label=label, **line)
    shade = {"color": colour, "alpha": 0.12, "lw": 0}
    axes.fill_between(row["rates"], values.min(0), values.max(0), **shade)


def _frame(axes: Any, problem: Problem) -> None:
    if problem.is_regression:
        axes.set_ylim(12, 20)
        axes.set_ylabel("error, minutes")
        return
    axes.set_yscale("logit")  # so that 0.93 and 0.95 are apart
    axes.set_ylim(0.07, 0.985)
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("test accuracy")
