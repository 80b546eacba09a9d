"""Arms measured in turn, from the same weights, with their quality beside the time."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.targets import REFERENCE
from benchmarks.worker import Worker
from benchmarks.workloads import Workload

QUALITY_EXAMPLES = 256
PASS_SECONDS = 0.4  # of an arm that can have a pass of any length
FIT_SECONDS = 1.0  # of one that goes through `fit`: an epoch has a fixed cost of 40 ms
FIT_EXAMPLES = 16_384  # at most in a pass of Keras's mini-batches
_SAME_AS = {  # whose loss an arm must reach, if not that of REFERENCE
    "SGDPlus fit, 8 examples per update": "keras SGD, batch 8",
    "SGDPlus fit, 32 examples per update": "keras SGD, batch 32",
    "keras SGD, batch 8": None,
    "keras SGD, batch 32": None,
    "keras SGD, batch 32, 32 steps per execution": "keras SGD, batch 32",
    "keras SGD, batch 32, jit_compile": "keras SGD, batch 32",
    "SGDPlus fit, reshuffled, one batch": None,
    "scikit-learn SGD, shuffled": None,
}


@dataclass
class Row:
    """What was measured of one arm on one workload."""

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


@dataclass(frozen=True)
class Point:
    """A value of an arm at a place of a curve."""

    curve: str
    at: int
    arm: str
    value: float
    unit: str = "us/example"


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
                progress(f"{workload.id}: {row.arm}")
                try:
                    _prepare(workload, weights, keras, worker, name, row)
                except RuntimeError as error:
                    row.missing = str(error)
    _compare(workload, [row for _, _, row in rows])
    for repeat in range(repeats):
        for worker, name, row in rows:
            if row.missing is None:
                progress(f"{workload.id}: pass {repeat + 1}, {row.arm}")
                seconds, beside = worker.ask("train", name)
                row.seconds.append(seconds)
                row.call_seconds.append(beside)
    for worker in workers:
        if worker.missing is None:
            worker.ask("clear")
    progress("")
    return [row for _, _, row in rows]


def _prepare(
    workload: Workload, weights: Any, keras: Worker, worker: Worker, name: str, row: Row
) -> None:
    # The arm's quality and first call, then the arm with a whole pass of examples.
    quality = min(QUALITY_EXAMPLES, workload.num_examples)
    row.first_seconds = worker.ask("make", name, workload, weights, quality)
    row.loss = keras.ask("loss", workload, worker.ask("weights", name), quality)
    row.num_examples = workload.num_examples
    if row.arm.startswith(("keras SGD, batch 32", "keras SGD, batch 8")):
        row.num_examples = min(FIT_EXAMPLES, workload.num_examples)
    elif not row.arm.startswith(("SGDPlus", "fit that", "scikit-learn")):
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
        if row.missing or reference is None or row.arm.startswith("fit that"):
            continue
        row.agrees = abs(row.loss - reference) <= workload.tolerance * abs(reference)


def progress(text: str) -> None:
    """Shows on a terminal what is going on, elsewhere that something is."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:78}", end="\r", file=sys.stderr, flush=True)
    elif text:
        print(".", end="", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """A Markdown table of rows."""
    lines = [
        "| workload | arm | us/example | range | first call, s | per call, ms | loss "
        "| agrees |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    said = {None: "-", True: "yes", False: "NO: row is wrong"}
    for row in rows:
        if row.missing:
            lines.append(f"| {row.workload} | {row.arm} | missing: {row.missing} |")
            continue
        times, beside = row.microseconds, statistics.median(row.call_seconds)
        lines.append(
            f"| {row.workload} | {row.arm} | {statistics.median(times):.4g} | "
            f"{min(times):.4g} to {max(times):.4g} | {row.first_seconds:.1f} | "
            f"{f'{beside * 1e3:.0f}' if beside else '-'} | {row.loss:.4f} | "
            f"{said[row.agrees]} |"
        )
    return "\n".join(lines)


Loop = tuple[Callable[[], float], float]  # a pass, microseconds per example; a loss


def in_turn(name: str, loops: Sequence[Loop], repeats: int) -> tuple[list[float], bool]:
    """The median time of each loop, pass by pass in turn; whether the losses agree.

    Args:
        name: what is printed if they do not.
        loops: as from `keras_arms.timed_loop`, of the same training.
        repeats: passes of each.
    """
    times: list[list[float]] = [[] for _ in loops]
    for _ in range(repeats):
        for found, (run, _) in zip(times, loops, strict=True):
            found.append(run())
    losses = [loss for _, loss in loops]
    agree = max(losses) - min(losses) <= 1e-4 * abs(losses[0])
    if not agree:
        print(f"{name}: the losses differ: {losses}")
    return [statistics.median(found) for found in times], agree
