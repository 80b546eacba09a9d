"""Whether the machine is quiet: a fixed piece of work, timed again and again.

The work reads and writes memory and multiplies matrices, on one thread, so that other
processes slow it down whichever of the two they use.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

MAX_DRIFT = 1.1  # times the best seen in this process
MAX_WAIT = 120.0  # seconds
_POLL = 5.0  # seconds
_REPEATS = 15


class Quiet:
    """Compares the time of the same work with the best that this process has seen."""

    def __init__(self) -> None:
        self._best = float("inf")
        self._work: Callable[[], float] | None = None

    def drift(self) -> float:
        """How many times slower than the best the work is now."""
        self._work = self._work or _work()
        now = self._work()
        self._best = min(self._best, now)
        return now / self._best

    def wait(self, seconds: float = MAX_WAIT) -> float:
        """Waits until the machine is quiet, but not for ever; returns the drift.

        Args:
            seconds: to wait at most; it says so when it starts to wait.
        """
        drift, end, told = self.drift(), time.monotonic() + seconds, False
        while drift > MAX_DRIFT and time.monotonic() < end:
            if not told:
                text = f"The machine is busy ({drift:.2f} times slower): waiting."
                print(text, file=sys.stderr, flush=True)
                told = True
            time.sleep(min(_POLL, seconds))
            drift = self.drift()
        return drift


def _work() -> Callable[[], float]:
    """A function that does the work and gives its seconds, the median of some."""
    import numpy as np

    # Taken once, and changed in place: how long new memory takes depends on luck.
    numbers = np.ones(1 << 18, "float32")
    matrix, product = np.ones((2, 96, 96), "float32")

    def seconds() -> float:
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            for _ in range(40):
                np.multiply(numbers, 0.5, out=numbers)
                np.add(numbers, 1, out=numbers)
            for _ in range(40):
                np.matmul(matrix, matrix, out=product)
                np.tanh(product, out=matrix)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return seconds


QUIET = Quiet()  # of this process
