"""Every workload with every arm, alternately, and the targets: met or not.

`python -m benchmarks speed [--quick] [--only id,id] [--repeats n]`. An arm first makes
the same few updates from the same weights: that is its first call (compilation is in
it) and its quality, the loss afterwards, which must agree between arms of the same
algorithm. Then the arms take turns, pass by pass. A pass of an arm that calls `fit` is
an epoch inside of it; what the call costs beside its epochs has a column of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import extremes, record
from benchmarks.targets import REFERENCE, TARGETS, Medians
from benchmarks.worker import PEERS, Worker
from benchmarks.workloads import WORKLOADS, Workload

QUALITY_EXAMPLES = 256
PASS_SECONDS = 0.5  # of an arm that can have a pass of any length
_FULL_ONLY = ("64 steps per execution", "jit_compile", "torch.compile", "our XLA flags")
_LINEAR, _MLP, _MOMENTUM = "linear-20", "mlp-784-128-10", "mlp-784-128-10-m0.9"
_SPECIAL = {  # arms that answer one question, on the workloads that ask it
    "SGDPlus fit, batch 32": (_MLP,),
    "SGDPlus fit, batch 4,096": (_MLP, _MOMENTUM),
    "SGDPlus fit, batch 8,192": (_LINEAR,),
    "SGDPlus fit, batch 65,536": (_LINEAR,),
    "SGDPlus fit, reshuffled, one batch": (_LINEAR,),
    "SGDPlus fit, 8 examples per update": (_MLP,),
    "SGDPlus fit, 32 examples per update": (_MLP,),
    "keras SGD, batch 8": (_MLP,),
    "fit that trains nothing, batch 1,024": (_LINEAR, _MLP),
    "fit that trains nothing, batch 4,096": (_MLP,),
    "fit that trains nothing, batch 8,192": (_LINEAR,),
    "fit that trains nothing, batch 65,536": (_LINEAR,),
    "fit that trains nothing, one batch": (_LINEAR,),
}
_SAME_AS = {  # whose loss an arm must reach, if not that of REFERENCE
    "SGDPlus fit, 8 examples per update": "keras SGD, batch 8",
    "SGDPlus fit, 32 examples per update": "keras SGD, batch 32",
    "keras SGD, batch 8": None,
    "keras SGD, batch 32": None,
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
    if not row.arm.startswith(("SGDPlus", "fit that", "scikit-learn")):
        seconds, _ = worker.ask("train", name)
        size = int(PASS_SECONDS / seconds * quality)
        row.num_examples = max(quality, min(size, workload.num_examples))
    if row.num_examples != quality:
        worker.ask("make", name, workload, weights, row.num_examples)


def _wanted(workload_id: str, quick: bool) -> Callable[[str], bool]:
    def wanted(arm: str) -> bool:
        if quick and any(word in arm for word in _FULL_ONLY):
            return False
        if arm in _SPECIAL or arm.startswith(("SGDPlus fit,", "fit that")):
            return workload_id in _SPECIAL.get(arm, ())
        return True

    return wanted


def _compare(workload: Workload, rows: list[Row]) -> None:
    losses = {row.arm: row.loss for row in rows if row.missing is None}
    for row in rows:
        reference = losses.get(_SAME_AS.get(row.arm, REFERENCE) or "")
        if row.missing or reference is None or row.arm.startswith("fit that"):
            continue
        row.agrees = abs(row.loss - reference) <= workload.tolerance * abs(reference)


def _progress(text: str) -> None:
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


def medians(rows: list[Row]) -> Medians:
    """Microseconds per example of each row that is there and right."""
    return {
        (row.workload, row.arm): statistics.median(row.microseconds)
        for row in rows
        if row.missing is None and row.agrees is not False
    }


def verdicts(found: Medians, ids: set[str]) -> list[tuple[str, str, str, str, str]]:
    """Per target: workload, what, figure, bound, met."""
    lines = []
    for target in TARGETS:
        if target.workload not in ids:
            continue
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g}{target.unit}"
        try:
            value = target.compute(found)
        except KeyError as error:
            lines.append(
                (target.workload, target.text, "no figure", bound, f"no: {error}")
            )
            continue
        met = "yes" if target.met(value) else "NO"
        figure = f"{value:.3g}{target.unit}"
        lines.append((target.workload, target.text, figure, bound, met))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Prints tables, writes JSON; the exit code is 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed")
    parser.add_argument("--quick", action="store_true", help="fewer arms and passes")
    parser.add_argument("--only", help="workload ids, with commas between")
    parser.add_argument("--repeats", type=int, help="passes of each arm")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (3 if options.quick else 7)
    chosen = options.only.split(",") if options.only else list(WORKLOADS)
    start = time.perf_counter()
    workers = [Worker(peer) for peer in PEERS if not (options.quick and peer.suffix)]
    for worker in workers:
        if worker.missing:
            print(f"{worker.peer.name} is {worker.missing}: its arms are missing.\n")
    rows: list[Row] = []
    for workload_id in chosen:
        wanted = _wanted(workload_id, options.quick)
        found = measure(WORKLOADS[workload_id], workers, repeats, wanted)
        print(table(found) + "\n", flush=True)
        rows += found
    for worker in workers:
        worker.stop()
    lines = verdicts(medians(rows), set(chosen))
    if not options.only:
        lines += extremes.verdicts(options.quick)
    print(
        "| workload | figure | value | target | met |\n| --- | --- | --- | --- | --- |"
    )
    for line in lines:
        print(f"| {' | '.join(line)} |")
    environment = record.environment()
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nMedians of {repeats} passes, compilation apart; {minutes:.0f} minutes. "
        + record.line(environment)
    )
    path = record.write(
        "speed-quick" if options.quick else "speed",
        {"rows": [asdict(row) for row in rows], "targets": lines},
    )
    print(f"Written to {path.relative_to(record.RESULTS.parent.parent)}.")
    wrong = [row for row in rows if row.agrees is False]
    return int(bool(wrong) or any(not line[-1].startswith("yes") for line in lines))
