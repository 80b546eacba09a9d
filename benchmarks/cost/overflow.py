"""The cost of blocks that end before a product overflows: the loop with and without it.

`python -m benchmarks overflow [workload ...]`. No product overflows here, so the
weights are the same. The two loops take turns, on one thread.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

REPEATS = 15
TARGET = 1.03
_EXAMPLES = {"mlp-784-128-10": 8_192, "mlp-784-128-10-m0.9": 4_096}  # in a pass


@dataclass(frozen=True)
class Overflow(Finding):
    """Microseconds per example, and the ratio of the passes of each turn."""

    keys = ("workload",)
    workload: str
    without: float
    with_it: float
    ratios: list[float]  # of each turn
    agree: bool  # the losses

    @property
    def ratio(self) -> float:
        """The median of the turns."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median lies, 19 times of 20: two order statistics."""
        # 4th and 12th of 15: 0.965 by the binomial distribution with p=1/2.
        margin = round(len(self.ratios) / 5)
        ordered = sorted(self.ratios)
        return ordered[margin], ordered[-1 - margin]

    @property
    def missed(self) -> bool:
        """Whether it changes the loss or costs more than the target."""
        return not self.agree or self.ratio > TARGET


def measure(arguments: list[str]) -> Iterator[Overflow]:
    """Yields each workload."""
    for workload, count in loops.chosen("overflow", __doc__, arguments, _EXAMPLES):
        with _whole_blocks():
            plain, loss = loops.loop_of(workload, count)
        checked, same = loops.loop_of(workload, count)
        turns = [_turn(plain, checked, turn) for turn in range(REPEATS)]
        before, after = zip(*turns, strict=True)
        yield Overflow(
            workload.id,
            statistics.median(before),
            statistics.median(after),
            [b / a for a, b in turns],
            abs(loss - same) <= 1e-4 * abs(loss),
        )


def _turn(plain: loops.Pass, checked: loops.Pass, number: int) -> tuple[float, float]:
    # The best of three passes each; who begins changes from turn to turn.
    pair = [plain, checked]
    found = [min(run() for _ in range(3)) for run in pair[:: -1 if number % 2 else 1]]
    before, after = found[:: -1 if number % 2 else 1]
    return before, after


@contextlib.contextmanager
def _whole_blocks() -> Iterator[None]:
    # While a loop is traced: each block is walked to its end, whatever is in it.
    from keras_sgd_plus._lazy import blocks

    whole = property(lambda product: product.gram.shape[0])
    with (
        mock.patch.object(blocks.Product, "num_rows", whole),
        mock.patch.object(blocks, "walked", lambda rows, num_walked: rows),
        mock.patch.object(blocks, "share", lambda factor, outputs: factor * outputs),
    ):
        yield
