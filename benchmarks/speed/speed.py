"""Every workload with every arm, in turns, and the targets: met or not.

`python -m benchmarks speed [--quick] [--only id,id] [--repeats n]`. An arm first makes
the same few updates from the same weights. Their time is its first call (compilation is
in it); the loss afterwards is its quality, which must agree between arms of the same
algorithm. Then the arms take turns, pass by pass. A pass of an arm that calls `fit` is
an epoch inside the call; a column of its own shows what the call costs beside epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from benchmarks.arms.names import FIT, IDLE, ONE_BATCH
from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import storage
from benchmarks.shared.finding import Finding, Stored
from benchmarks.speed import extremes
from benchmarks.speed.targets import Verdicts, medians, verdicts
from benchmarks.timing import measuring
from benchmarks.timing.measuring import Row
from benchmarks.timing.worker import PEERS, started

# Arms that `--quick` leaves out: another setting of an arm that it has.
_FULL_ONLY = ("64 steps per execution", "jit_compile", "torch.compile", "our XLA flags")
_LINEAR, _MLP, _MOMENTUM = "linear-20", "mlp-784-128-10", "mlp-784-128-10-m0.9"
_SPECIAL = {  # arms that answer one question, on the workloads that ask it
    f"{FIT}, batch 32": (_MLP,),
    f"{FIT}, batch 4,096": (_MLP, _MOMENTUM),
    f"{FIT}, batch 8,192": (_LINEAR,),
    f"{FIT}, batch 65,536": (_LINEAR,),
    ONE_BATCH: (_LINEAR,),
    f"{FIT}, 8 examples per update": (_MLP,),
    f"{FIT}, 32 examples per update": (_MLP,),
    "keras SGD, batch 8": (_MLP,),
    f"{IDLE}, batch 1,024": (_LINEAR, _MLP),
    f"{IDLE}, batch 4,096": (_MLP,),
    f"{IDLE}, batch 8,192": (_LINEAR,),
    f"{IDLE}, batch 65,536": (_LINEAR,),
    f"{IDLE}, one batch": (_LINEAR,),
}


def _wanted(workload_id: str, quick: bool) -> Callable[[str], bool]:
    def wanted(arm: str) -> bool:
        if quick and any(word in arm for word in _FULL_ONLY):
            return False
        if arm in _SPECIAL or arm.startswith((f"{FIT},", IDLE)):
            return workload_id in _SPECIAL.get(arm, ())
        return True

    return wanted


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
    """Yields the rows of each workload, the targets and the run; writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed")
    parser.add_argument("--quick", action="store_true", help="fewer arms and passes")
    parser.add_argument("--only", help="workload ids, with commas between")
    parser.add_argument("--repeats", type=int, help="passes of each arm")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (3 if options.quick else 7)
    chosen = options.only.split(",") if options.only else list(WORKLOADS)
    start = time.perf_counter()
    rows: list[Row] = []
    peers = [peer for peer in PEERS if not (options.quick and peer.suffix)]
    with started(peers) as workers:
        for workload_id in chosen:
            wanted = _wanted(workload_id, options.quick)
            workload = WORKLOADS[workload_id]
            found = measuring.measure(workload, workers, repeats, wanted)
            yield Rows(found)
            rows += found
    lines = verdicts(medians(rows), set(chosen))
    if not options.only:
        lines += extremes.verdicts(options.quick)
    name = "speed-quick" if options.quick else "speed"
    if not options.only:  # a part of the workloads must not replace all of them
        storage.write(name, {"rows": [asdict(row) for row in rows], "targets": lines})
    yield Verdicts(lines)
    yield Run(rows, repeats, (time.perf_counter() - start) / 60)
    if not options.only:
        yield Stored(name)
