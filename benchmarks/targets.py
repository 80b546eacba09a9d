"""What the speed benchmark is for: ratios between arms, and the bounds on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Medians = Mapping[tuple[str, str], float]  # (workload, arm) -> microseconds per example

LOOP, FIT, REFERENCE = "SGDPlus loop", "SGDPlus fit", "keras SGD, batch 1"
EPOCH, JAX, C = "SGDPlus fit, reshuffled, one batch", "jax scan", "C loop"
C_UNFUSED = "C loop, example by example"


@dataclass(frozen=True)
class Target:
    """A figure made of medians, and its bound; the text says what it compares."""

    workload: str
    text: str
    compute: Callable[[Medians], float]
    bound: float
    at_least: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Whether the figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _ratio(workload: str, over: str, under: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, over] / medians[workload, under]

    return Target(workload, f"{over} / {under}", compute, bound)


def _speedup(workload: str, slow: str, fast: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, slow] / medians[workload, fast]

    return Target(workload, f"{slow} / {fast}", compute, bound, at_least=True)


def _above(workload: str, arm: str, floor: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, arm] - medians[workload, floor]

    return Target(workload, f"{arm} - {floor}", compute, bound, unit=" us")


def _growth(workload: str, small: str, arm: str, bound: float) -> Target:
    def compute(medians: Medians) -> float:
        return medians[workload, arm] - medians[small, arm]

    return Target(workload, f"{arm}, above {small}", compute, bound, unit=" us")


_MLP, _MOMENTUM, _BIG = (
    "mlp-784-128-10",
    "mlp-784-128-10-m0.9",
    "mlp-784-2048-2048-10",
)
TARGETS = (
    _ratio("linear-20", EPOCH, "scikit-learn SGD, shuffled", 1.0),
    _above(
        "linear-20",
        "SGDPlus fit, batch 65,536",
        "fit that trains nothing, batch 65,536",
        0.25,
    ),
    _ratio("linear-20", LOOP, JAX, 1.0),
    _ratio(_MLP, LOOP, JAX, 1.0),
    _ratio(_MLP, LOOP, C, 1.15),
    _ratio(_MLP, LOOP, C_UNFUSED, 1.15),
    _speedup(_MLP, REFERENCE, LOOP, 100),
    _speedup(_MLP, REFERENCE, "SGDPlus fit, batch 4,096", 100),
    _ratio(_MLP, "SGDPlus fit, batch 4,096", LOOP, 1.2),
    _ratio(_MLP, "SGDPlus fit, batch 32", "keras SGD, batch 32", 1.3),
    _speedup(_MLP, "keras SGD, batch 32", "SGDPlus fit, 32 examples per update", 8),
    _ratio(_MOMENTUM, LOOP, JAX, 1.0),
    _ratio(_MOMENTUM, LOOP, C, 1.4),
    _ratio(_MOMENTUM, LOOP, C_UNFUSED, 1.4),
    _speedup(_MOMENTUM, REFERENCE, LOOP, 60),
    _speedup(_MOMENTUM, REFERENCE, "SGDPlus fit, batch 4,096", 60),
    _ratio(_BIG, LOOP, JAX, 1.0),
    _ratio("cnn", LOOP, "torch eager", 0.4),
    _ratio("cnn", LOOP, JAX, 0.3),
    _speedup("conv-bn-dropout", REFERENCE, FIT, 30),
    _ratio("conv-bn-dropout", LOOP, JAX, 1.0),
    _speedup("lstm-20x8", REFERENCE, FIT, 60),
    _ratio("lstm-20x8", LOOP, JAX, 1.0),
    _speedup("transformer-32x64", REFERENCE, FIT, 10),
    _ratio("transformer-32x64", LOOP, JAX, 1.0),
    _growth("embedding-1m", "embedding-1k", LOOP, 4.0),
)
