"""Draws `figures/*.svg` from `results/*.json`: `python -m benchmarks figures`."""

from __future__ import annotations

import importlib

from benchmarks.shared import command, storage

_ROOMS = {  # stored results -> the module here that draws them, by a function so named
    "speed": "speed",
    "growth": "scaling",
    "replicas": "scaling",
    "embeddings": "scaling",
    "accuracy": "quality",
    "robustness": "quality",
    "order": "quality",
    "search": "quality",
    "blocks": "speed",
}


def draw(name: str) -> None:
    """Draws stored results, where there is a figure of them and matplotlib is there."""
    if name not in _ROOMS:
        return
    try:
        import matplotlib
    except ImportError:
        print(f"matplotlib is not installed: no figure of {name}.")
        return
    if not storage.path_of(name).exists():
        print(f"No figure of {name}: run `python -m benchmarks {name}` first.")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keras_sgd_plus"  # ids that do not change
    # Only here: the figures of quality load Keras, which the others do not need.
    room = importlib.import_module(f"benchmarks.report.figures.{_ROOMS[name]}")
    getattr(room, name)(storage.read(name)["results"])


def main(arguments: list[str]) -> int:
    """Draws all figures."""
    command.options("figures", __doc__, arguments)
    for name in _ROOMS:
        draw(name)
    return 0
