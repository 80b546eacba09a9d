"""The arms of the speed benchmark: one module per peer, with its `ARMS`.

`ARMS` maps an arm's id to `make(workload, weights, x, y) -> Arm`, which raises
`Unsupported` for a workload that the peer cannot train. An arm walks its examples in
the given order, one update each, starting from `weights`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Unsupported(Exception):
    """The peer cannot train this workload; the text says why."""


class Arm(Protocol):
    """One way to train a workload, ready to run."""

    def train(self) -> None:
        """One pass over the arm's x and y; returns when the work is done."""
        ...

    # An arm may have `timed() -> (float, float)` too: the seconds of one more pass, and
    # what a call costs beside its passes, where only the arm can tell them apart.

    def weights(self) -> list[np.ndarray]:
        """Trainable weights in Keras's order and layout, then moving statistics."""
        ...


def load(module: str) -> dict[str, Any]:
    """The `ARMS` of a peer's module; ImportError if the peer is not installed."""
    import importlib

    return importlib.import_module(f"benchmarks.arms.{module}").ARMS
