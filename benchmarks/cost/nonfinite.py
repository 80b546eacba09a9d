"""The cost of checking each loss and gradient: the loop with and without the check.

`python -m benchmarks nonfinite [workload ...]`. The models take turns, on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

REPEATS = 15
TARGET = 1.10  # times the loop without the check
# One layer alone: the check of its 784 inputs is a larger part of an update.
_TARGETS = {"softmax-784-10": 1.30}
MODES = ("propagate", "skip", "raise")
_EXAMPLES = {  # in a pass
    "linear-20": 65_536,
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
    "cnn": 512,
    "lstm-20x8": 1_024,
    "embedding-100k": 4_096,
}


@dataclass(frozen=True)
class Modes(Finding):
    """Microseconds per example of a loop, by mode."""

    workload: str
    propagate: float
    skip: float
    stop: float  # "raise"
    agree: bool  # the losses

    @property
    def met(self) -> bool:
        """Whether the check costs no more than the target."""
        target = _TARGETS.get(self.workload, TARGET)
        return max(self.skip, self.stop) <= target * self.propagate

    @property
    def missed(self) -> bool:
        """Whether a mode changes the loss or costs more."""
        return not (self.agree and self.met)


def measure(arguments: list[str]) -> Iterator[Modes]:
    """Yields each workload."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks nonfinite")
    named = ", ".join(_EXAMPLES)
    parser.add_argument("workloads", nargs="*", help=f"of {named}; all if none")
    loops.use_one_thread()
    for name in parser.parse_args(arguments).workloads or _EXAMPLES:
        modes = [
            loops.loop_of(WORKLOADS[name], _EXAMPLES[name], nonfinite=mode)
            for mode in MODES
        ]
        times, agree = loops.in_turn(name, modes, REPEATS)
        yield Modes(name, *times, agree=agree)
