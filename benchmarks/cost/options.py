"""What an option of SGDPlus costs: the loop with several settings, against the first.

`python -m benchmarks nonfinite|clipping|capped [workload ...]`. The models take turns,
on one thread, and all make the same updates:

- `nonfinite`: each loss and gradient is checked, and all are finite.
- `clipping`: gradients are measured, and the limit is far above every norm.
- `capped`: `max_loss_fraction` bounds no step, since the learning rate is so low.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

REPEATS = 15
_LIMIT, _LOW = 1e6, 1e-7
_EXAMPLES = {  # in a pass
    "linear-20": 65_536,
    "softmax-784-10": 8_192,
    "mlp-784-128-10": 4_096,
    "mlp-784-128-10-m0.9": 4_096,
    "mlp-784-32-32-10-m0.9": 4_096,
    "cnn": 512,
    "lstm-20x8": 1_024,
    "transformer-32x64": 128,
    "embedding-100k": 4_096,
}
_DENSE = tuple(_EXAMPLES)[1:5]
_LAYERED = ("cnn", "lstm-20x8", "transformer-32x64")


class _Study(NamedTuple):
    """The settings by name, the workloads, and the bound on each ratio."""

    settings: dict[str, dict[str, Any]]
    workloads: tuple[str, ...]
    target: float
    targets: dict[str, float] = {}  # of workloads with another one


_STUDIES = {
    "nonfinite": _Study(
        {mode: {"nonfinite": mode} for mode in ("propagate", "skip", "raise")},
        ("linear-20", *_DENSE, "cnn", "lstm-20x8", "embedding-100k"),
        1.10,
        # One layer alone: the check of its 784 inputs is a larger part of an update.
        {"softmax-784-10": 1.30},
    ),
    "clipping": _Study(
        {
            "none": {},
            "clipnorm": {"clipnorm": _LIMIT},
            "global_clipnorm": {"global_clipnorm": _LIMIT},
        },
        _DENSE,
        1.30,
    ),
    "capped": _Study(
        {
            "none": {"learning_rate": _LOW},
            "max_loss_fraction": {"learning_rate": _LOW, "max_loss_fraction": 1.0},
        },
        (*_DENSE, *_LAYERED),
        1.30,
        dict.fromkeys(_LAYERED, 1.15),
    ),
}


@dataclass(frozen=True)
class Options(Finding):
    """Microseconds per example of a loop, by setting; the first is the measure."""

    workload: str
    times: dict[str, float]
    target: float  # times the first
    agree: bool  # the losses

    @property
    def ratios(self) -> dict[str, float]:
        """The time of each other setting in times of the first."""
        first, *others = self.times
        return {name: self.times[name] / self.times[first] for name in others}

    @property
    def met(self) -> bool:
        """Whether no setting costs more than the target."""
        return max(self.ratios.values()) <= self.target

    @property
    def missed(self) -> bool:
        """Whether a setting changes the loss or costs more."""
        return not (self.agree and self.met)


def measure(name: str, arguments: list[str]) -> Iterator[Options]:
    """Yields each workload of a study."""
    study = _STUDIES[name]
    examples = {workload: _EXAMPLES[workload] for workload in study.workloads}
    for workload, count in loops.chosen(name, __doc__, arguments, examples):
        models = [loops.loop_of(workload, count, **s) for s in study.settings.values()]
        found, agree = loops.in_turn(workload.id, models, REPEATS)
        times = dict(zip(study.settings, found, strict=True))
        target = study.targets.get(workload.id, study.target)
        yield Options(workload.id, times, target, agree)
