"""The figures of `speed` and `blocks`."""

from __future__ import annotations

from typing import Any

from benchmarks.arms.names import FIT, JAX, KERAS_32, REFERENCE, TORCH
from benchmarks.report.figures.canvas import bare, colour_of, save
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


def blocks(rows: list[dict[str, Any]]) -> None:
    """Time per example against the size of the kernel, without momentum and with it."""
    import matplotlib.pyplot as plt

    points = [row["values"] for row in rows if not row["values"]["threads"]]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    momenta = dict.fromkeys(point["momentum"] for point in points)
    for axes, momentum in zip(panels, momenta, strict=True):
        here = [point for point in points if point["momentum"] == momentum]
        here.sort(key=_entries)
        lines = {
            "one by one": (here, "s--", lambda p: p["times"]["1"]),
            "SGDPlus": (here, "o-", lambda p: p["times"][str(p["ours"])]),
            "C in blocks of 64": (
                [point for point in here if point["native"]],
                "^:",
                lambda p: p["native"],
            ),
        }
        for name, (chosen, look, time) in lines.items():
            at = [_entries(point) for point in chosen]
            style = {"color": colour_of(name), "markersize": 4, "label": name}
            axes.plot(at, [time(p) for p in chosen], look, **style)
        axes.set(xscale="log", yscale="log", title=f"momentum {momentum:g}")
        axes.set(xlabel="entries of the first kernel")
    panels[0].set_ylabel("µs per example")
    panels[0].legend(frameon=False)
    bare(*panels)
    figure.tight_layout()
    save(figure, "blocks")


def _entries(point: dict[str, Any]) -> int:
    inputs, outputs = point["shape"].split("x")
    return int(inputs) * int(outputs)
