"""One loop with several settings of SGDPlus: each against the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

REPEATS = 15


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


def measure(
    command: str,
    arguments: list[str],
    settings: Mapping[str, dict[str, Any]],
    examples: Mapping[str, int],
    target_of: Mapping[str, float],
) -> Iterator[Options]:
    """Yields each workload; the models take turns, on one thread.

    Args:
        command: the subcommand.
        arguments: its arguments: ids of workloads, or none for all.
        settings: arguments of SGDPlus, by the name of the setting.
        examples: in a pass, by workload.
        target_of: the bound on each ratio, by workload; "" is that of all others.
    """
    for workload, count in loops.chosen(command, arguments, examples):
        models = [loops.loop_of(workload, count, **s) for s in settings.values()]
        found, agree = loops.in_turn(workload.id, models, REPEATS)
        times = dict(zip(settings, found, strict=True))
        target = target_of.get(workload.id, target_of[""])
        yield Options(workload.id, times, target, agree)
