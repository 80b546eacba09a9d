"""One colour per arm, the same in every figure.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people
with any kind of colour vision can tell apart, without the pair of red and green. Marks
and dashes tell the arms apart without colour, too.
"""

from __future__ import annotations

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


def colour_of(arm: str) -> str:
    """The colour of an arm, by how its name begins; KeyError for an unknown one."""
    name = arm.replace("Keras", "keras")
    for start, colour in _COLOURS.items():
        if name.startswith(start):
            return colour
    raise KeyError(arm)
