"""Where figures go, and how: the same results always give the same file."""

from __future__ import annotations

from typing import Any

from benchmarks.shared.machine import ROOT

FIGURES = ROOT / "benchmarks" / "figures"


def save(figure: Any, name: str) -> None:
    """Writes `figures/<name>.svg`, with no date in it and ids that do not change."""
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(f"Written to {path.relative_to(ROOT)}.")


def logarithmic(axes: Any) -> None:
    """A logarithmic horizontal axis with 1, 2 and 5 written out."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())  # they would overlap


def bare(*panels: Any) -> None:
    """Takes the upper and the right edge off axes."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
