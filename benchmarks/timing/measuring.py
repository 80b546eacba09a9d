"""Arms take turns, from the same weights, with their quality beside the time."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.arms.names import IDLE, KERAS_32, ONE_BATCH, REFERENCE, SKLEARN
from benchmarks.arms.workloads import Workload
from benchmarks.timing.worker import Worker

QUALITY_EXAMPLES = 256
PASS_SECONDS = 0.4  # of an arm that can have a pass of any length
FIT_SECONDS = 1.0  # of one that goes through `fit`: an epoch has a fixed cost of 40 ms
FIT_EXAMPLES = 16_384  # at most in a pass of Keras's mini-batches
_SAME_AS = {  # the arm whose loss must be reached, if not that of REFERENCE
    "SGDPlus fit, 8 examples per update": "keras SGD, batch 8",
    "SGDPlus fit, 32 examples per update": KERAS_32,
    "keras SGD, batch 8": None,
    KERAS_32: None,
    f"{KERAS_32}, 32 steps per execution": KERAS_32,
    f"{KERAS_32}, jit_compile": KERAS_32,
    ONE_BATCH: None,  # another order
    SKLEARN: None,
}


@dataclass
class Row:
    """The measurements of one arm on one workload."""

    workload: str
    arm: str
    first_seconds: float = 0.0  # making it and the first, small pass
    loss: float = float("nan")
    agrees: bool | None = None  # None: there is no other arm of its algorithm
    num_examples: int = 0
    seconds: list[float] = field(default_factory=list)  # of each pass
    call_seconds: list[float] = field(default_factory=list)  # beside the passes
    missing: str | None = None

    @property
    def microseconds(self) -> list[float]:
        """Per example, of each pass."""
        return [s / self.num_examples * 1e6 for s in self.seconds]

    @property
    def median(self) -> float:
        """Microseconds per example, the median of the passes."""
        return statistics.median(self.microseconds)

    @property
    def is_right(self) -> bool:
        """Whether it was measured and did not reach another loss than its algorithm."""
        return self.missing is None and self.agrees is not False


@dataclass(frozen=True)
class Point:
    """A value of an arm at a place of a curve."""

    curve: str
    at: int
    arm: str
    value: float
    unit: str = "µs/example"


def measure(
    workload: Workload,
    workers: list[Worker],
    repeats: int,
    wanted: Callable[[str], bool],
) -> list[Row]:
    """The rows of one workload, of the arms that are wanted."""
    keras = workers[0]
    weights = keras.ask("initial_weights", workload)
    rows: list[tuple[Worker, str, Row]] = []
    for worker in workers:
        for name in worker.arms:
            row = Row(workload.id, name + worker.peer.suffix)
            if wanted(row.arm):
                rows.append((worker, name, row))
                _progress(f"{workload.id}: {row.arm}")
                try:
                    _prepare(workload, weights, keras, worker, name, row)
                except RuntimeError as error:
                    row.missing = str(error)
    _compare(workload, [row for _, _, row in rows])
    for repeat in range(repeats):
        for worker, name, row in rows:
            if row.missing is None:
                _progress(f"{workload.id}: pass {repeat + 1}, {row.arm}")
                seconds, beside = worker.ask("train", name)
                row.seconds.append(seconds)
                row.call_seconds.append(beside)
    for worker in workers:
        if worker.missing is None:
            worker.ask("clear")
    _progress("")
    return [row for _, _, row in rows]


def _prepare(
    workload: Workload, weights: Any, keras: Worker, worker: Worker, name: str, row: Row
) -> None:
    # The arm's quality and first call, then the arm with a whole pass of examples.
    quality = min(QUALITY_EXAMPLES, workload.num_examples)
    row.first_seconds = worker.ask("make", name, workload, weights, quality)
    row.loss = keras.ask("loss", workload, worker.ask("weights", name), quality)
    row.num_examples = workload.num_examples
    if row.arm.startswith((KERAS_32, "keras SGD, batch 8")):
        row.num_examples = min(FIT_EXAMPLES, workload.num_examples)
    elif not row.arm.startswith(("SGDPlus", IDLE, "scikit-learn")):
        seconds, _ = worker.ask("train", name)
        wanted = FIT_SECONDS if row.arm.startswith("keras") else PASS_SECONDS
        size = int(wanted / seconds * quality)
        row.num_examples = max(quality, min(size, workload.num_examples))
    if row.num_examples != quality:
        worker.ask("make", name, workload, weights, row.num_examples)


def _compare(workload: Workload, rows: list[Row]) -> None:
    losses = {row.arm: row.loss for row in rows if row.missing is None}
    for row in rows:
        reference = losses.get(_SAME_AS.get(row.arm, REFERENCE) or "")
        if row.missing or reference is None or row.arm.startswith(IDLE):
            continue
        row.agrees = abs(row.loss - reference) <= workload.tolerance * abs(reference)


def _progress(text: str) -> None:
    """Names the arm at work on a terminal; elsewhere prints a dot."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:78}", end="\r", file=sys.stderr, flush=True)
    elif text:
        print(".", end="", file=sys.stderr, flush=True)
