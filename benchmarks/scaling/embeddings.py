"""Momentum on embedding tables: time per example against the vocabulary.

`python -m benchmarks embeddings`: bags of 20 embeddings of 32, momentum 0.9, batches of
4,096 examples. Dense momentum moves all of a table at each update; SGDPlus moves the
rows that an example looks up, and the rest at the end of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.arms.names import FIT, JAX, KERAS_1, TORCH
from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import command, storage
from benchmarks.shared.finding import Finding, Stored
from benchmarks.shared.quiet import QUIET
from benchmarks.timing import measuring
from benchmarks.timing.measuring import Point
from benchmarks.timing.worker import PEERS, Worker, started

REPEATS = 7
OURS = f"{FIT}, batch 4,096"
_ARMS = (OURS, KERAS_1, JAX, TORCH)
_PEERS = ("keras", "jax", "torch")
VOCABULARIES = (1_000, 10_000, 100_000, 1_000_000)
# Microseconds per example that a vocabulary may cost more than the smallest.
BOUNDS = {100_000: 5.0, 1_000_000: 25.0}


def grown(points: list[dict[str, Any]]) -> dict[int, float]:
    """Extra microseconds per example over the smallest vocabulary, by vocabulary."""
    ours = {p["at"]: p["value"] for p in points if p["arm"] == OURS}
    return {size: ours[size] - ours[VOCABULARIES[0]] for size in BOUNDS}


@dataclass(frozen=True)
class Vocabularies(Finding):
    """The points of all vocabularies, as they are stored."""

    points: list[dict[str, Any]]

    @property
    def missed(self) -> bool:
        """Whether a large vocabulary costs more than its bound."""
        return any(more > BOUNDS[size] for size, more in grown(self.points).items())


def _points(size: int, workers: list[Worker]) -> list[Point]:
    workload = replace(
        WORKLOADS["embedding-1k"],
        id=f"embedding-{size}-m0.9",
        sizes=(size, 32, 10),
        momentum=0.9,
        learning_rate=0.01,
    )
    rows = measuring.measure(workload, workers, REPEATS, lambda arm: arm in _ARMS)
    for row in rows:  # an arm that fails must not end the others
        if not row.is_right:
            print(f"{size:,}: no {row.arm}: {row.missing or 'another loss'}")
    return [Point("rows", size, row.arm, row.median) for row in rows if row.is_right]


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Yields all vocabularies; writes JSON."""
    command.options("embeddings", __doc__, arguments)
    points: list[Point] = []
    with started([peer for peer in PEERS if peer.name in _PEERS]) as workers:
        for size in VOCABULARIES:
            QUIET.wait()
            points += _points(size, workers)
    found = [asdict(point) for point in points]
    storage.write("embeddings", found)
    yield Vocabularies(found)
    yield Stored("embeddings")
