"""Momentum on embedding tables: time per example against the vocabulary.

`python -m benchmarks embeddings [--quick]`: bags of 20 embeddings of 32, momentum 0.9,
batches of 4,096 examples. Dense momentum moves all of a table at each update; SGDPlus
moves the rows that an example looks up, and the rest at the end of a batch.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, replace
from typing import Any

from benchmarks import figures, record
from benchmarks.growth import table
from benchmarks.measuring import Point, measure
from benchmarks.worker import PEERS, Worker
from benchmarks.workloads import WORKLOADS

OURS = "SGDPlus fit, batch 4,096"
_ARMS = (OURS, "keras SGD, batch 1", "jax scan", "torch eager")
_PEERS = ("keras", "jax", "torch")
VOCABULARIES = (1_000, 10_000, 100_000, 1_000_000)
# Microseconds per example that a vocabulary may cost more than the smallest.
BOUNDS = {100_000: 5.0, 1_000_000: 25.0}


def grown(points: list[dict[str, Any]]) -> dict[int, float]:
    """By vocabulary, what an example takes more than at the smallest, microseconds."""
    ours = {p["at"]: p["value"] for p in points if p["arm"] == OURS}
    return {size: ours[size] - ours[VOCABULARIES[0]] for size in BOUNDS}


def verdicts(points: list[dict[str, Any]]) -> list[str]:
    """A line per bound: what an example takes more, and whether that is met."""
    lines = []
    for size, more in grown(points).items():
        verdict = "met" if more <= BOUNDS[size] else "MISSED"
        start = (
            f"{size:,} rows take {more:.1f} us/example more than {VOCABULARIES[0]:,}"
        )
        lines.append(f"{start} (bound: {BOUNDS[size]:g}; {verdict})")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Prints a table and the bounds, writes JSON and the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks embeddings")
    parser.add_argument("--quick", action="store_true", help="fewer passes")
    repeats = 3 if parser.parse_args(arguments).quick else 7
    workers = [Worker(peer) for peer in PEERS if peer.name in _PEERS]
    points: list[Point] = []
    for size in VOCABULARIES:
        workload = replace(
            WORKLOADS["embedding-1k"],
            id=f"embedding-{size}-m0.9",
            sizes=(size, 32, 10),
            momentum=0.9,
            learning_rate=0.01,
        )
        rows = measure(workload, workers, repeats, lambda arm: arm in _ARMS)
        for row in rows:
            if row.missing is not None or row.agrees is False:
                print(f"{size:,}: no {row.arm}: {row.missing or 'another loss'}")
                continue
            value = statistics.median(row.microseconds)
            points.append(Point("rows", size, row.arm, value))
    for worker in workers:
        worker.stop()
    print(table(points) + "\n")
    found = [asdict(point) for point in points]
    lines = verdicts(found)
    print("\n".join(lines))
    print(f"Medians of {repeats} passes. {record.line(record.environment())}")
    record.write("embeddings", found)
    figures.draw("embeddings")
    return int(any("MISSED" in line for line in lines))
