"""Every workload with every arm, in turns, and the targets: met or not.

`python -m benchmarks speed [--quick] [--only id,id] [--missing]`. Each
workload is stored when it is done; `--missing` leaves out those that this very code has
measured, so that a run can be stopped and resumed. Before each workload the run waits
until the machine is quiet.

An arm first makes the same few updates from the same weights. Their time is its first
call (compilation is in it); the loss afterwards is its quality, which must agree
between arms of the same algorithm. Then the arms take turns, pass by pass. A pass of an
arm that calls `fit` is an epoch inside the call; a column of its own shows what the
call costs beside epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.arms.names import FIT, IDLE, ONE_BATCH
from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import command
from benchmarks.shared.finding import Finding, Stored, Verdicts
from benchmarks.shared.quiet import QUIET
from benchmarks.speed import extremes, stored
from benchmarks.speed.targets import medians, verdicts
from benchmarks.timing import measuring
from benchmarks.timing.measuring import Row
from benchmarks.timing.worker import PEERS, started

# Arms that `--quick` leaves out: another setting of an arm that it has.
_FULL_ONLY = (
    *("64 steps per execution", "jit_compile", "torch.compile", "our XLA flags"),
    *("8 examples per update", "batch 8"),
)
# Workloads that `--quick` leaves out: no target is about them.
_FULL_ONLY_WORKLOADS = ("softmax-784-10", "mlp-784-32-32-10-m0.9", "embedding-100k")
_LINEAR, _MLP, _MOMENTUM = "linear-20", "mlp-784-128-10", "mlp-784-128-10-m0.9"
_SPECIAL = {  # arms that answer one question, on the workloads that ask it
    f"{FIT}, batch 32": (_MLP,),
    f"{FIT}, batch 4,096": (_MLP, _MOMENTUM),
    f"{FIT}, batch 8,192": (_LINEAR, _MLP),
    f"{FIT}, batch 65,536": (_LINEAR,),
    ONE_BATCH: (_LINEAR,),
    f"{FIT}, 8 examples per update": (_MLP,),
    f"{FIT}, 32 examples per update": (_MLP,),
    "keras SGD, batch 8": (_MLP,),
    f"{IDLE}, batch 1,024": (_LINEAR, _MLP),
    f"{IDLE}, batch 4,096": (_MLP,),
    f"{IDLE}, batch 8,192": (_LINEAR, _MLP),
    f"{IDLE}, batch 65,536": (_LINEAR,),
    f"{IDLE}, one batch": (_LINEAR,),
}


def wanted_arms(workload_id: str, quick: bool) -> Callable[[str], bool]:
    """Whether an arm is measured on a workload, by its id."""

    def wanted(arm: str) -> bool:
        if quick and arm.endswith(_FULL_ONLY):
            return False
        if arm in _SPECIAL or arm.startswith((f"{FIT},", IDLE)):
            return workload_id in _SPECIAL.get(arm, ())
        return True

    return wanted


def workload_ids(quick: bool) -> list[str]:
    """What a run measures."""
    return [w for w in WORKLOADS if not (quick and w in _FULL_ONLY_WORKLOADS)]


@dataclass(frozen=True)
class Rows(Finding):
    """All arms of one workload."""

    rows: list[Row]

    @property
    def missed(self) -> bool:
        """Whether an arm reached another loss than its algorithm."""
        return any(row.agrees is False for row in self.rows)


@dataclass(frozen=True)
class Run(Finding):
    """All rows of a run, and how it was made."""

    rows: list[Row]
    repeats: int
    minutes: float


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Yields the rows of each workload, the targets and the run; stores each."""
    flags = {"quick": False, "only": None, "missing": False}
    options = command.options("speed", __doc__, arguments, **flags)
    name = "speed-quick" if options.quick else "speed"
    repeats = 2 if options.quick else 7
    chosen = options.only.split(",") if options.only else workload_ids(options.quick)
    if options.missing:
        chosen = [each for each in chosen if not stored.is_fresh(name, each)]
    start = time.perf_counter()
    rows: list[Row] = []
    peers = [peer for peer in PEERS if not (options.quick and peer.suffix)]
    with started(peers) as workers:
        for workload_id in chosen:
            wanted = wanted_arms(workload_id, options.quick)
            drift = QUIET.wait()
            found = measuring.measure(WORKLOADS[workload_id], workers, repeats, wanted)
            stored.keep(name, workload_id, found, [drift, QUIET.drift()])
            yield Rows(found)
            rows += found
    lines = verdicts(medians(rows), set(chosen))
    if not options.only:
        QUIET.wait()
        first_calls = extremes.verdicts(options.quick)
        stored.keep_extremes(name, first_calls)
        lines += first_calls
    yield Verdicts(lines)
    yield Run(rows, repeats, (time.perf_counter() - start) / 60)
    yield Stored(name)
