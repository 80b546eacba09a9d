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
import time
from collections.abc import Callable
from dataclasses import asdict

from benchmarks import extremes, figures, record
from benchmarks.measuring import Row, measure, table
from benchmarks.targets import FIT, JAX, LOOP, REFERENCE, TARGETS, Medians
from benchmarks.worker import PEERS, Worker
from benchmarks.workloads import WORKLOADS

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


def _wanted(workload_id: str, quick: bool) -> Callable[[str], bool]:
    def wanted(arm: str) -> bool:
        if quick and any(word in arm for word in _FULL_ONLY):
            return False
        if arm in _SPECIAL or arm.startswith(("SGDPlus fit,", "fit that")):
            return workload_id in _SPECIAL.get(arm, ())
        return True

    return wanted


def medians(rows: list[Row]) -> Medians:
    """Microseconds per example of each row that is there and right."""
    return {
        (row.workload, row.arm): statistics.median(row.microseconds)
        for row in rows
        if row.missing is None and row.agrees is not False
    }


def summary(found: Medians) -> str:
    """The README's table: a row per workload, microseconds per example."""
    columns = {
        FIT: "SGDPlus, `fit`",
        LOOP: "its loop alone",
        JAX: "JAX scan",
        "torch eager": "torch",
        REFERENCE: "Keras, batch 1",
        f"{REFERENCE}, 64 steps per execution": "64 steps per execution",
        "keras SGD, batch 32": "Keras, batch 32",
    }
    rows = []
    for workload in dict.fromkeys(workload for workload, _ in found):
        values = [found.get((workload, arm)) for arm in columns]
        cells = [
            "-" if v is None else f"{v:.2g}" if v < 10 else f"{v:,.0f}" for v in values
        ]
        rows.append([workload, *cells])
    return record.markdown(["workload", *columns.values()], rows)


def verdicts(found: Medians, ids: set[str]) -> list[extremes.Verdict]:
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
    missed = extremes.show(lines)
    print("\n" + summary(medians(rows)))
    environment = record.environment()
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nMedians of {repeats} passes, compilation apart; {minutes:.0f} minutes. "
        + record.line(environment)
    )
    if not options.only:
        name = "speed-quick" if options.quick else "speed"
        results = {"rows": [asdict(row) for row in rows], "targets": lines}
        path = record.write(name, results)
        print(f"Written to {path.relative_to(record.RESULTS.parent.parent)}.")
        if not options.quick:
            figures.draw("speed")
    wrong = [row for row in rows if row.agrees is False]
    return int(bool(wrong or missed))
