"""The figure of `speed`."""

from __future__ import annotations

from typing import Any

from benchmarks.arms.names import FIT, JAX, KERAS_32, LOOP, REFERENCE, TORCH
from benchmarks.report.figures.canvas import bare, save
from benchmarks.speed import stored
from benchmarks.speed.targets import medians

_ARMS = {  # of the bars, with their colours and hatches
    LOOP: ("#1b6ca8", ""),
    FIT: ("#7fb2d8", "///"),
    JAX: ("#e08e45", "..."),
    TORCH: ("#b04a4a", "xxx"),
    KERAS_32: ("#c4c4c4", "---"),
    REFERENCE: ("#4d4d4d", ""),
}


def speed(results: dict[str, Any]) -> None:
    """Bars per workload, an arm each, on a logarithmic axis."""
    import matplotlib.pyplot as plt

    rows = stored.rows(results)
    found = medians(rows)
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure, axes = plt.subplots(figsize=(9, 0.62 * len(workloads) + 1.2))
    thick = 0.8 / len(_ARMS)
    for i, (arm, (colour, hatch)) in enumerate(_ARMS.items()):
        places = [j for j, w in enumerate(workloads) if (w, arm) in found]
        values = [found[workloads[j], arm] for j in places]
        heights = [j + (i - len(_ARMS) / 2 + 0.5) * thick for j in places]
        # Hatches tell the bars apart without colour, too.
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        axes.barh(heights, values, thick, label=arm, **style)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()  # the first workload on top, as in the table
    axes.set_xscale("log")
    axes.set_xlabel("microseconds per example; 'batch 32' makes one update in 32")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, frameon=False)
    bare(axes)
    save(figure, "speed")
