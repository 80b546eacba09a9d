"""The figure of `speed`."""

from __future__ import annotations

from typing import Any

from benchmarks.arms.names import FIT, JAX, KERAS_32, REFERENCE, TORCH
from benchmarks.report.figures.canvas import bare, save
from benchmarks.report.figures.palette import colour_of
from benchmarks.speed import stored
from benchmarks.speed.targets import medians

_HATCHES = {  # of the bars: they are told apart without colour, too
    FIT: "",
    KERAS_32: "///",
    JAX: "...",
    TORCH: "xxx",
    REFERENCE: "",
}


def speed(results: dict[str, Any]) -> None:
    """Bars per workload, an arm each, on a logarithmic axis."""
    import matplotlib.pyplot as plt

    rows = stored.rows(results)
    found = medians(rows)
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure, axes = plt.subplots(figsize=(9, 0.62 * len(workloads) + 1.2))
    thick = 0.8 / len(_HATCHES)
    for i, (arm, hatch) in enumerate(_HATCHES.items()):
        places = [j for j, w in enumerate(workloads) if (w, arm) in found]
        values = [found[workloads[j], arm] for j in places]
        heights = [j + (i - len(_HATCHES) / 2 + 0.5) * thick for j in places]
        style = {"color": colour_of(arm), "hatch": hatch}
        style |= {"edgecolor": "white", "linewidth": 0}
        axes.barh(heights, values, thick, label=arm, **style)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()  # the first workload on top, as in the table
    axes.set_xscale("log")
    axes.set_xlabel("µs per example (batch 32: one update per 32 examples)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, frameon=False)
    bare(axes)
    save(figure, "speed")
