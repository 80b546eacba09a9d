"""The figure of `blocks`."""

from __future__ import annotations

from typing import Any

from benchmarks.report.figures.canvas import bare, save
from benchmarks.report.figures.palette import colour_of


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
