"""The targets of `max_loss_fraction`: scores that each rate of a range must reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.rates import MOMENTA, PLAIN, capped, means
from benchmarks.shared.finding import Verdict


@dataclass(frozen=True)
class Target:
    """A bound on the worst mean over seeds of an arm, over a range of rates.

    `bound` is on the score, or with `beside_plain` on how much worse it is than that of
    plain SGD at the best rate and momentum of its own. With `searched` the arm has the
    fraction that the validation part has chosen, else 1; with `averaged`, the averages.
    """

    problem: str
    lowest: float
    bound: float
    momenta: tuple[float, ...] = MOMENTA
    beside_plain: bool = False
    searched: bool = False
    averaged: bool = False


HIGHEST = 10.0
TARGETS = (
    Target("mlp", 0.01, 0.92),
    Target("digits", 0.001, 0.96, momenta=(0.0,)),
    Target("flights", 0.01, 0.5, beside_plain=True, searched=True),
    Target("flights", 0.01, 0.5, beside_plain=True, searched=True, averaged=True),
)


def row_of(found: dict[str, Any], arm: str, momentum: float) -> dict[str, Any]:
    """The row of an arm in the stored results of a problem."""
    (row,) = [r for r in found["arms"] if (r["arm"], r["momentum"]) == (arm, momentum)]
    return row


def worst(found: dict[str, Any], arm: str, momentum: float, lowest: float) -> float:
    """The worst mean over seeds at rates from `lowest` to 10."""
    here = means(row_of(found, arm, momentum))
    values = [value for rate, value in here.items() if lowest <= rate <= HIGHEST]
    if any(map(math.isnan, values)):
        return math.nan
    return max(values) if "nll" not in found["arms"][0] else min(values)


def best_plain(found: dict[str, Any]) -> float:
    """The least error of plain SGD over rates and momenta, means over seeds."""
    rows = [means(row_of(found, PLAIN, momentum)) for momentum in MOMENTA]
    values = [value for row in rows for value in row.values()]
    return min(value for value in values if not math.isnan(value))


def verdicts(stored: dict[str, Any]) -> list[Verdict]:
    """The targets whose problem is stored: problem, figure, value, bound, met."""
    lines = []
    for target in TARGETS:
        found = stored.get(target.problem)
        for momentum in target.momenta if found else ():
            fraction = found["fractions"][-1] if target.searched else 1.0
            arm = capped(fraction, target.averaged)
            value = worst(found, arm, momentum, target.lowest)
            text = (
                f"{arm}, momentum {momentum:g}: the worst of rates "
                f"{target.lowest:g} to {HIGHEST:g}"
            )
            if target.beside_plain:
                value -= best_plain(found)
                text += ", above plain SGD at its best"
                shown, bound = f"{value:.2f} minutes", f"<= {target.bound:g} minutes"
                met = value <= target.bound
            else:
                shown, bound = f"{value:.4f}", f">= {target.bound:g}"
                met = value >= target.bound
            said = "yes" if met else "NO"
            lines.append((target.problem, text, shown, bound, said))
    return lines
