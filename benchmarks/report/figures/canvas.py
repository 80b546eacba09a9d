"""Where figures go and how they look: the same results always give the same file.

An arm has one colour in every figure. The colours are those of Okabe and Ito
(https://jfly.uni-koeln.de/color/), which people with any kind of colour vision can tell
apart, without the pair of red and green. Marks and dashes tell arms apart without
colour, too.
"""

from __future__ import annotations

from typing import Any

from benchmarks.shared.machine import ROOT

FIGURES = ROOT / "benchmarks" / "figures"

BLUE, SKY, PURPLE = "#0072b2", "#56b4e9", "#cc79a7"
VERMILION, ORANGE, TEAL = "#d55e00", "#e69f00", "#009e73"
BLACK, GREY, LIGHT = "#222222", "#888888", "#c4c4c4"

_COLOURS = {  # by the first words of an arm's name, the longest first
    "SGDPlus, not tuned": PURPLE,
    "SGDPlus, AverageWeights": SKY,
    "SGDPlus fit, reshuffled": SKY,
    "SGDPlus step": SKY,
    "SGDPlus": BLUE,
    "one by one": SKY,  # SGDPlus without blocks
    "keras SGD, batch 32": GREY,
    "keras SGD, momentum 0.9, batch 256": LIGHT,
    "keras SGD, momentum 0.9, batch 32": GREY,
    "keras SGD": BLACK,
    "keras fit": BLACK,
    "keras Adam": VERMILION,
    "jax": ORANGE,
    "torch": TEAL,
    "scikit-learn": PURPLE,
    "C": TEAL,
    "fit that trains nothing": LIGHT,
    "idle": LIGHT,
}


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


def colour_of(arm: str) -> str:
    """The colour of an arm, by how its name begins; KeyError for an unknown one."""
    name = arm.replace("Keras", "keras")
    for start, colour in _COLOURS.items():
        if name.startswith(start):
            return colour
    raise KeyError(arm)
