"""How time and memory grow, with the network, the batch, the data, the vocabulary.

`python -m benchmarks growth [--quick] [--only parameters,batch,...]`; curves that are
left out keep the results of the last run. Points of a curve are measured like the rows
of `speed`, except what can be had once per process only: memory, first calls and the
number of compilations.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from benchmarks import compilations, extremes, figures, record
from benchmarks.measuring import Point, measure
from benchmarks.worker import PEERS, Worker
from benchmarks.workloads import WORKLOADS, Workload

_LOOP, _JAX, _EPOCH = "SGDPlus loop", "jax scan", "SGDPlus fit, reshuffled, one batch"
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
    repeats: int,
) -> list[Point]:
    # `arms` maps the arm's id to its name in the curve.
    rows = measure(workload, workers, repeats, lambda arm: arm in arms)
    wrong = [row.arm for row in rows if row.agrees is False]
    if wrong:
        raise SystemExit(f"{curve} at {at:,}: {wrong} reached another loss")
    return [
        Point(curve, at, arms[row.arm], statistics.median(row.microseconds))
        for row in rows
        if row.missing is None
    ]


def _parameters(workers: list[Worker], repeats: int) -> list[Point]:
    arms = (_LOOP, _JAX, "keras SGD, batch 1", "keras SGD, batch 32", "torch eager")
    points = []
    for hidden in _HIDDEN:
        count = 784 * hidden + hidden + hidden * 10 + 10
        size = max(256, min(65_536, 2_000_000_000 // count // 4))
        workload = replace(
            _MLP,
            id=f"mlp-784-{hidden}-10",
            sizes=(784, hidden, 10),
            num_examples=size,
            learning_rate=0.0005,
        )
        named = {arm: arm for arm in arms}
        points += _timed("parameters", count, workload, named, workers, repeats)
    return points


def _batch(workers: list[Worker], repeats: int) -> list[Point]:
    points = []
    for workload, name in ((_MLP, "MLP"), (_LINEAR, "linear")):
        arms = ("SGDPlus fit", "fit that trains nothing")
        for size in _BATCHES:
            named = {f"{arm}, batch {size:,}": f"{arm}, {name}" for arm in arms}
            named["keras SGD, batch 1"] = f"keras SGD, batch 1, {name}"  # the quality
            found = _timed("batch_size", size, workload, named, workers, repeats)
            points += found
    return points


def _dataset(workers: list[Worker], repeats: int) -> list[Point]:
    arms = (_LOOP, _EPOCH, "scikit-learn SGD, shuffled", "keras SGD, batch 1")
    points = []
    for size in _SIZES:
        workload = replace(_LINEAR, num_examples=size)
        named = {arm: arm for arm in arms}
        points += _timed("examples", size, workload, named, workers, repeats)
    return points


def _vocabulary(workers: list[Worker], repeats: int) -> list[Point]:
    arms = (_LOOP, "SGDPlus fit, batch 256", _JAX, "torch eager", "keras SGD, batch 1")
    points = []
    for size in _VOCABULARIES:
        workload = replace(
            WORKLOADS["embedding-1k"], id=f"embedding-{size}", sizes=(size, 16, 10)
        )
        named = {arm: arm for arm in arms}
        points += _timed("vocabulary", size, workload, named, workers, repeats)
    return points


def _memory(workers: list[Worker], repeats: int) -> list[Point]:
    del workers, repeats
    points = []
    for size in _MEMORY_BATCHES:
        for how in ("SGDPlus fit", "SGDPlus step", "keras fit", "idle fit"):
            peak = extremes.in_process("extremes", "peak_memory", "cnn", size, how)
            points.append(Point("memory", size, how, peak / extremes.MIB, "MiB"))
    return points


CURVES: dict[str, Callable[[list[Worker], int], list[Point]]] = {
    "parameters": _parameters,
    "batch": _batch,
    "dataset": _dataset,
    "vocabulary": _vocabulary,
    "memory": _memory,
    "depth": lambda workers, repeats: compilations.by_depth(),
    "length": lambda workers, repeats: compilations.by_length(),
}


def table(points: list[Point]) -> str:
    """A Markdown table of one curve: a row per place, a column per arm."""
    arms = list(dict.fromkeys(point.arm for point in points))
    units = {point.arm: point.unit for point in points}
    heads = [f"{arm}{units[arm] and f', {units[arm]}'}" for arm in arms]
    rows = []
    for at in dict.fromkeys(point.at for point in points):
        cells = {p.arm: f"{p.value:.4g}" for p in points if p.at == at}
        rows.append([f"{at:,}", *(cells.get(arm, "-") for arm in arms)])
    return record.markdown([points[0].curve, *heads], rows)


def _merged(new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # What was measured now, and the curves of earlier runs that were not.
    try:
        old = record.read("growth")["results"]
    except FileNotFoundError:
        return new
    measured = {point["curve"] for point in new}
    return new + [point for point in old if point["curve"] not in measured]


def main(arguments: list[str] | None = None) -> int:
    """Prints a table per curve, writes JSON and figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth")
    parser.add_argument("--quick", action="store_true", help="fewer passes")
    parser.add_argument("--only", help="curves, with commas between")
    options = parser.parse_args(arguments)
    repeats = 3 if options.quick else 5
    chosen = options.only.split(",") if options.only else list(CURVES)
    workers = [Worker(peer) for peer in PEERS if peer.name in _PEERS]
    for worker in workers:
        if worker.missing:
            print(f"{worker.peer.name} is {worker.missing}: its arms are missing.\n")
    points: list[Point] = []
    for name in chosen:
        found = CURVES[name](workers, repeats)
        for curve in dict.fromkeys(point.curve for point in found):
            here = [point for point in found if point.curve == curve]
            print(table(here) + "\n", flush=True)
        points += found
    for worker in workers:
        worker.stop()
    print(f"Medians of {repeats} passes. {record.line(record.environment())}")
    record.write("growth", _merged([asdict(point) for point in points]))
    figures.draw("growth")
    return 0
