"""The interface of a peer's module: its `ARMS`.

`ARMS` maps an arm's id to `make(workload, weights, x, y) -> Arm`, which raises
`Unsupported` for a workload that the peer cannot train. An arm starts from `weights`
and visits its examples in the given order, one update each, unless its id says
otherwise.
"""

from __future__ import annotations

from typing import Protocol

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
