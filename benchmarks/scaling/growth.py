"""Curves of time and memory: against the network, the batch, the data, the vocabulary.

`python -m benchmarks growth [curve ...]`; curves that are
left out keep their stored results. Points of a curve are measured like the rows
of `speed`, except what a process shows once: memory, first calls and the number of
compilations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.arms.names import (
    FIT,
    IDLE,
    JAX,
    KERAS_1,
    KERAS_32,
    LOOP,
    ONE_BATCH,
    SKLEARN,
    TORCH,
)
from benchmarks.arms.workloads import WORKLOADS, Workload
from benchmarks.scaling import compilations
from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.processes import WITHOUT_FLAGS, in_process
from benchmarks.shared.quiet import QUIET
from benchmarks.timing import measuring
from benchmarks.timing.measuring import Point
from benchmarks.timing.once import MIB, peak_memory
from benchmarks.timing.worker import PEERS, Worker, started

_REPEATS = 5
_PEERS = ("keras", "jax", "torch", "scikit-learn")
_MLP, _LINEAR = WORKLOADS["mlp-784-128-10"], WORKLOADS["linear-20"]
_HIDDEN = (8, 32, 128, 512, 2048)
_BATCHES = (64, 256, 1024, 4096, 16_384, 65_536)
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_VOCABULARIES = (1_000, 10_000, 100_000, 1_000_000)
_MEMORY_BATCHES = (64, 1024, 8192, 65_536)


def _timed(
    curve: str,
    at: int,
    workload: Workload,
    arms: dict[str, str],
    workers: list[Worker],
) -> list[Point]:
    # `arms` maps the id of an arm to its name in the curve.
    QUIET.wait()
    rows = measuring.measure(workload, workers, _REPEATS, lambda arm: arm in arms)
    wrong = [row.arm for row in rows if row.agrees is False]
    if wrong:  # a point of another algorithm would be worse than none
        raise SystemExit(f"{curve} at {at:,}: {wrong} reached another loss")
    return [
        Point(curve, at, arms[row.arm], row.median)
        for row in rows
        if row.missing is None
    ]


def _same(*arms: str) -> dict[str, str]:
    # Arms that are named like their ids.
    return {arm: arm for arm in arms}


def _parameters(workers: list[Worker]) -> list[Point]:
    arms = _same(LOOP, JAX, KERAS_1, KERAS_32, TORCH)
    points = []
    for hidden in _HIDDEN:
        count = 784 * hidden + hidden + hidden * 10 + 10
        # With as many examples, a pass of a large network would take too long.
        size = max(256, min(65_536, 2_000_000_000 // count // 4))
        workload = replace(
            _MLP,
            id=f"mlp-784-{hidden}-10",
            sizes=(784, hidden, 10),
            num_examples=size,
            learning_rate=0.0005,
        )
        points += _timed("parameters", count, workload, arms, workers)
    return points


def _batch(workers: list[Worker]) -> list[Point]:
    points = []
    for workload, name in ((_MLP, "MLP"), (_LINEAR, "linear")):
        for size in _BATCHES:
            named = {f"{arm}, batch {size:,}": f"{arm}, {name}" for arm in (FIT, IDLE)}
            named[KERAS_1] = f"{KERAS_1}, {name}"  # the loss that all must reach
            points += _timed("batch_size", size, workload, named, workers)
    return points


def _dataset(workers: list[Worker]) -> list[Point]:
    arms = _same(LOOP, ONE_BATCH, SKLEARN, KERAS_1)
    points = []
    for size in _SIZES:
        workload = replace(_LINEAR, num_examples=size)
        points += _timed("examples", size, workload, arms, workers)
    return points


def _vocabulary(workers: list[Worker]) -> list[Point]:
    arms = _same(LOOP, f"{FIT}, batch 256", JAX, TORCH, KERAS_1)
    points = []
    for size in _VOCABULARIES:
        workload = replace(
            WORKLOADS["embedding-1k"], id=f"embedding-{size}", sizes=(size, 16, 10)
        )
        points += _timed("vocabulary", size, workload, arms, workers)
    return points


def _memory(workers: list[Worker]) -> list[Point]:
    del workers
    points = []
    for size in _MEMORY_BATCHES:
        for how in ("SGDPlus fit", "SGDPlus step", "keras fit", "idle fit"):
            peak = in_process(peak_memory, "cnn", size, how, environment=WITHOUT_FLAGS)
            points.append(Point("memory", size, how, peak / MIB, "MiB"))
    return points


CURVES: dict[str, Callable[[list[Worker]], list[Point]]] = {
    "parameters": _parameters,
    "batch": _batch,
    "dataset": _dataset,
    "vocabulary": _vocabulary,
    "memory": _memory,
    "depth": lambda workers: compilations.by_depth(),
    "length": lambda workers: compilations.by_length(),
}


@dataclass(frozen=True)
class Curve(Finding):
    """The points of one curve."""

    keys = ("name",)
    name: str
    points: list[Point]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Curve:
        """The finding whose fields were stored as `values`."""
        return cls(values["name"], [Point(**point) for point in values["points"]])


def measure(arguments: list[str]) -> Iterator[Curve]:
    """Yields each curve."""
    chosen = command.options("growth", __doc__, arguments, CURVES).names
    # All workers at once, although memory and compilations need none: most curves do.
    with started([peer for peer in PEERS if peer.name in _PEERS]) as workers:
        for name in chosen:
            found = CURVES[name](workers)
            for curve in dict.fromkeys(point.curve for point in found):
                points = [point for point in found if point.curve == curve]
                yield Curve(curve, points)
