"""The figures of `growth`, `replicas` and `embeddings`."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.report.figures.canvas import bare, save
from benchmarks.scaling.replicas import ARMS, FAR, on_paper

_PANELS = {  # curve -> title, label of the horizontal axis, of the vertical one
    "parameters": ("Network", "parameters", "us/example"),
    "batch_size": ("Batch, through fit", "examples per batch", "us/example"),
    "examples": ("Data, linear 20", "examples", "us/example"),
    "vocabulary": ("Vocabulary, bag of embeddings", "rows", "us/example"),
    "memory": ("Peak memory, CNN", "examples per batch", "MiB"),
    "depth": ("First call, Dense layers", "layers", "seconds"),
}
_LINES = ("o-", "s--", "^-.", "D:", "v-", "P--")  # told apart without colour, too


def growth(points: list[dict[str, Any]]) -> None:
    """A panel per curve."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(13, 7.5))
    for axes, (curve, (title, x_label, y_label)) in zip(
        panels.flat, _PANELS.items(), strict=True
    ):
        here = [p for p in points if p["curve"] == curve and p["unit"]]
        arms = dict.fromkeys(p["arm"] for p in here)
        for arm, look in zip(arms, _LINES, strict=False):
            line = [(p["at"], p["value"]) for p in here if p["arm"] == arm]
            axes.plot(*zip(*line, strict=True), look, markersize=4, label=arm)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_minor_formatter("")
        if y_label == "seconds":
            axes.set_yticks((0.3, 0.5, 1, 2), ("0.3", "0.5", "1", "2"))
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
        axes.legend(fontsize=7, frameon=False, loc="upper left")
        bare(axes)
    figure.tight_layout()
    save(figure, "growth")


def replicas(results: dict[str, Any]) -> None:
    """Loss against epochs and seconds as measured, and an epoch on paper."""
    import matplotlib.pyplot as plt

    figure, (by_epoch, by_time, paper) = plt.subplots(1, 3, figsize=(14, 4.2))
    for arm, dashes in zip(ARMS, ("-", "--", ":"), strict=True):
        for (workers, found), mark in zip(results.items(), "os^", strict=True):
            losses = found["arms"][arm]["loss"]
            each = statistics.median(found["arms"][arm]["seconds"])
            epochs = range(1, len(losses) + 1)
            style = {"linestyle": dashes, "marker": mark, "markersize": 3.5}
            label = f"{arm}, {workers} worker{'s' * (workers != '1')}"
            by_epoch.plot(epochs, losses, label=label, **style)
            by_time.plot([each * e for e in epochs], losses, **style)
    by_epoch.set(xlabel="epochs", ylabel="test loss (nats)", yscale="log")
    by_epoch.set_ylim(top=2 * by_epoch.get_ylim()[1])  # room for the legend
    by_epoch.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    by_time.set(xlabel="seconds, compilation left out", ylabel="test loss (nats)")
    by_time.set(xscale="log", yscale="log")
    for axes in (by_epoch, by_time):
        axes.set_yticks((0.3, 0.5, 0.7), ("0.3", "0.5", "0.7"))
        axes.yaxis.set_minor_formatter("")
    for batch, dashes in ((500, "-"), (2_000, "--")):
        times = [on_paper(results, batch, r) for r in FAR]
        label = f"an average per {batch:,} examples"
        paper.plot(FAR, times, dashes, marker="o", markersize=3.5, label=label)
    ideal = [on_paper(results, 500, 1) / r for r in FAR]
    paper.plot(FAR, ideal, ":", color="0.5", label="averages for nothing")
    paper.set(xscale="log", yscale="log", title="On paper: a core per worker")
    paper.set(xlabel="workers", ylabel="seconds per epoch")
    paper.set_xticks(FAR, [str(r) for r in FAR])
    paper.legend(fontsize=7, frameon=False)
    bare(by_epoch, by_time, paper)
    figure.tight_layout()
    save(figure, "replicas")


def embeddings(points: list[dict[str, Any]]) -> None:
    """Time per example against the vocabulary, a line per arm."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    styles = zip(dict.fromkeys(p["arm"] for p in points), "os^vD", strict=False)
    for arm, mark in styles:
        line = [(p["at"], p["value"]) for p in points if p["arm"] == arm]
        width = 2.5 if arm.startswith("SGDPlus") else 1.2
        axes.plot(*zip(*line, strict=True), marker=mark, label=arm, linewidth=width)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="rows of the embedding table, 32 wide", ylabel="us/example")
    axes.set_title("20 ids per example, momentum 0.9, one update per example")
    axes.legend(frameon=False)
    bare(axes)
    figure.tight_layout()
    save(figure, "embeddings")
