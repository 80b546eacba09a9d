"""The figures of `growth`, `replicas` and `embeddings`."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.report.figures.canvas import (
    BLACK,
    BLUE,
    GREY,
    SKY,
    bare,
    colour_of,
    save,
)
from benchmarks.scaling.replicas import FAR, OURS, STOCK, on_paper

_PANELS = {  # curve -> title, label of the horizontal axis, of the vertical one
    "parameters": ("Network", "parameters", "µs per example"),
    "batch_size": ("Batch, through fit", "examples per batch", "µs per example"),
    "examples": ("Data, linear 20", "examples", "µs per example"),
    "vocabulary": ("Vocabulary, bag of embeddings", "rows", "µs per example"),
    "memory": ("Peak memory, CNN", "examples per batch", "MiB"),
    "depth": ("First call, Dense layers", "layers", "seconds"),
}
_LINES = ("o-", "s--", "^-.", "D:", "v-", "P--")  # told apart without colour, too
_LEFT_OUT = "linear"  # arms of the curve of batches: the table has them


def growth(rows: list[dict[str, Any]]) -> None:
    """A panel per curve."""
    import matplotlib.pyplot as plt

    points = [point for row in rows for point in row["values"]["points"]]
    figure, panels = plt.subplots(2, 3, figsize=(13, 7.5))
    for axes, (curve, (title, x_label, y_label)) in zip(
        panels.flat, _PANELS.items(), strict=True
    ):
        here = [p for p in points if p["curve"] == curve and p["unit"]]
        arms = dict.fromkeys(p["arm"] for p in here if _LEFT_OUT not in p["arm"])
        for arm, look in zip(arms, _LINES, strict=False):
            line = [(p["at"], p["value"]) for p in here if p["arm"] == arm]
            style = {"color": colour_of(arm), "markersize": 4, "label": arm}
            axes.plot(*zip(*line, strict=True), look, **style)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_minor_formatter("")
        if y_label == "seconds":
            axes.set_yticks((0.3, 0.5, 1, 2), ("0.3", "0.5", "1", "2"))
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        bare(axes)
    figure.tight_layout()
    save(figure, "growth")


def replicas(results: dict[str, Any]) -> None:
    """Loss against seconds on one and two workers, and an epoch on paper."""
    import matplotlib.pyplot as plt

    figure, (by_time, paper) = plt.subplots(1, 2, figsize=(10, 4.2))
    for arm, colour in ((OURS, BLUE), (STOCK, GREY)):
        for workers, dashes, mark in (("1", "-", "o"), ("2", "--", "s")):
            found = results[workers]["arms"][arm]
            each = statistics.median(found["seconds"])
            at = [each * (i + 1) for i in range(len(found["loss"]))]
            style = {"linestyle": dashes, "marker": mark, "color": colour}
            label = f"{arm}, {workers} worker{'s' * (workers != '1')}"
            by_time.plot(at, found["loss"], markersize=3.5, label=label, **style)
    by_time.set(xlabel="seconds, compilation left out", ylabel="test loss (nats)")
    by_time.set(xscale="log", yscale="log", title="Measured on two cores")
    by_time.set_yticks((0.3, 0.5, 0.7), ("0.3", "0.5", "0.7"))
    by_time.yaxis.set_minor_formatter("")
    by_time.legend(fontsize=8, frameon=False)
    for batch, colour, dashes in ((500, BLUE, "-"), (2_000, SKY, "--")):
        times = [on_paper(results, batch, r) for r in FAR]
        style = {"linestyle": dashes, "color": colour, "marker": "o", "markersize": 3.5}
        paper.plot(FAR, times, label=f"an average per {batch:,} examples", **style)
    ideal = [on_paper(results, 500, 1) / r for r in FAR]
    paper.plot(FAR, ideal, ":", color=BLACK, label="if averages cost nothing")
    paper.set(xscale="log", yscale="log", title="Computed: a core per worker")
    paper.set(xlabel="workers", ylabel="seconds per epoch")
    paper.set_xticks(FAR, [str(r) for r in FAR])
    paper.legend(fontsize=8, frameon=False)
    bare(by_time, paper)
    figure.tight_layout()
    save(figure, "replicas")


def embeddings(points: list[dict[str, Any]]) -> None:
    """Time per example against the vocabulary, a line per arm."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    styles = zip(dict.fromkeys(p["arm"] for p in points), "os^vD", strict=False)
    for arm, mark in styles:
        line = [(p["at"], p["value"]) for p in points if p["arm"] == arm]
        style = {"color": colour_of(arm), "marker": mark, "label": arm}
        axes.plot(*zip(*line, strict=True), **style)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="rows of the embedding table, 32 wide", ylabel="µs per example")
    axes.set_title("20 ids per example, momentum 0.9, one update per example")
    axes.legend(frameon=False)
    bare(axes)
    figure.tight_layout()
    save(figure, "embeddings")
