"""The cost of measuring gradients: the loop with clipping by norm, and without.

`python -m benchmarks clipping [workload ...]`. The limit is far above every norm, so
the weights are those without it. The models take turns, on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

REPEATS = 15
TARGET = 1.30  # times the loop without it
LIMIT = 1e6
OPTIONS = ("none", "clipnorm", "global_clipnorm")
_EXAMPLES = {  # in a pass
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
}


@dataclass(frozen=True)
class Clipped(Finding):
    """Microseconds per example of a loop, by the option that is set."""

    workload: str
    none: float
    clipnorm: float
    global_clipnorm: float
    agree: bool  # the losses

    @property
    def met(self) -> bool:
        """Whether clipping costs no more than the target."""
        return max(self.clipnorm, self.global_clipnorm) <= TARGET * self.none

    @property
    def missed(self) -> bool:
        """Whether an option changes the loss or costs more."""
        return not (self.agree and self.met)


def measure(arguments: list[str]) -> Iterator[Clipped]:
    """Yields each workload."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks clipping")
    named = ", ".join(_EXAMPLES)
    parser.add_argument("workloads", nargs="*", help=f"of {named}; all if none")
    loops.use_one_thread()
    for name in parser.parse_args(arguments).workloads or _EXAMPLES:
        options = [{} if option == "none" else {option: LIMIT} for option in OPTIONS]
        pair = [
            loops.loop_of(WORKLOADS[name], _EXAMPLES[name], **option)
            for option in options
        ]
        times, agree = loops.in_turn(name, pair, REPEATS)
        yield Clipped(name, *times, agree=agree)
