"""The targets of speed: ratios between arms, and the bounds on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.arms.names import (
    C_BLOCKS,
    FIT,
    IDLE,
    JAX,
    KERAS_32,
    LOOP,
    ONE_BATCH,
    REFERENCE,
    SKLEARN,
    TORCH,
    C,
)
from benchmarks.shared.finding import Verdict
from benchmarks.timing.measuring import Row

Medians = Mapping[tuple[str, str], float]  # (workload, arm) -> microseconds per example


@dataclass(frozen=True)
class Target:
    """A figure made of medians, and its bound. `text` names the arms compared."""

    workload: str
    text: str
    compute: Callable[[Medians], float]
    bound: float
    at_least: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Whether the figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _ratio(
    workload: str, over: str, under: str, bound: float, at_least: bool = False
) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, over] / medians[workload, under]

    return Target(workload, f"{over} / {under}", compute, bound, at_least)


def _speedup(workload: str, slow: str, fast: str, bound: float) -> Target:
    return _ratio(workload, slow, fast, bound, at_least=True)


def _above(workload: str, arm: str, floor: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, arm] - medians[workload, floor]

    return Target(workload, f"{arm} - {floor}", compute, bound, unit=" µs")


def _beside(workload: str, arm: str, floor: str, per: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        above = medians[workload, arm] - medians[workload, floor]
        return above / medians[workload, per]

    return Target(workload, f"({arm} - {floor}) / {per}", compute, bound)


def _growth(workload: str, small: str, arm: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, arm] - medians[small, arm]

    return Target(workload, f"{arm}, above {small}", compute, bound, unit=" µs")


_MLP, _MOMENTUM, _BIG = (
    "mlp-784-128-10",
    "mlp-784-128-10-m0.9",
    "mlp-784-2048-2048-10",
)
# Of each workload: where it must not lose, and by how much it must win.
TARGETS = (
    _ratio("linear-20", ONE_BATCH, SKLEARN, 1.0),
    _above("linear-20", f"{FIT}, batch 65,536", f"{IDLE}, batch 65,536", 0.25),
    _ratio("linear-20", LOOP, JAX, 1.0),
    _ratio(_MLP, LOOP, JAX, 0.4),
    _ratio(_MLP, LOOP, C, 1.0),
    _ratio(_MLP, LOOP, C_BLOCKS, 1.25),
    _speedup(_MLP, REFERENCE, LOOP, 100),
    _speedup(_MLP, REFERENCE, f"{FIT}, batch 4,096", 100),
    _ratio(_MLP, f"{FIT}, batch 4,096", LOOP, 1.2),
    _beside(_MLP, FIT, f"{IDLE}, batch 1,024", LOOP, 1.15),
    _beside(_MLP, f"{FIT}, batch 8,192", f"{IDLE}, batch 8,192", LOOP, 1.15),
    _ratio(_MLP, FIT, f"{KERAS_32}, 32 steps per execution", 0.6),
    _ratio(_MLP, f"{FIT}, batch 32", KERAS_32, 1.3),
    _speedup(_MLP, KERAS_32, f"{FIT}, 32 examples per update", 8),
    _ratio(_MOMENTUM, LOOP, JAX, 0.35),
    _ratio(_MOMENTUM, LOOP, C, 0.7),
    _ratio(_MOMENTUM, LOOP, C_BLOCKS, 1.25),
    _speedup(_MOMENTUM, REFERENCE, LOOP, 60),
    _speedup(_MOMENTUM, REFERENCE, f"{FIT}, batch 4,096", 60),
    _ratio(_BIG, LOOP, JAX, 1.0),
    _ratio(_BIG, FIT, LOOP, 1.2),
    _ratio(_BIG, FIT, KERAS_32, 1.0),
    _ratio("cnn", LOOP, TORCH, 0.4),
    _ratio("cnn", LOOP, JAX, 0.3),
    _speedup("conv-bn-dropout", REFERENCE, FIT, 30),
    _ratio("conv-bn-dropout", LOOP, JAX, 1.0),
    _speedup("lstm-20x8", REFERENCE, FIT, 60),
    _ratio("lstm-20x8", LOOP, JAX, 1.0),
    _speedup("transformer-32x64", REFERENCE, FIT, 10),
    _ratio("transformer-32x64", LOOP, JAX, 1.0),
    _growth("embedding-1m", "embedding-1k", LOOP, 4.0),
)


def medians(rows: Iterable[Row]) -> Medians:
    """Microseconds per example of each row that was measured and is right."""
    return {(row.workload, row.arm): row.median for row in rows if row.is_right}


def verdicts(found: Medians, ids: set[str]) -> list[Verdict]:
    """The targets of these workloads, met or not."""
    lines = []
    for target in TARGETS:
        if target.workload not in ids:
            continue
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g}{target.unit}"
        start = target.workload, target.text
        try:
            value = target.compute(found)
        except KeyError as error:  # a missing arm, or one that reached another loss
            lines.append((*start, "no figure", bound, f"no: {error}"))
            continue
        met = "yes" if target.met(value) else "NO"
        lines.append((*start, f"{value:.3g}{target.unit}", bound, met))
    return lines
