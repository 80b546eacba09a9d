"""Which learning rate is best, by what each candidate has lost.

Every candidate begins with the same weights, and visits the same examples once, in the
same order. The loss of an example before its own update is then an honest test loss
(progressive validation; Blum, Kalai and Langford, 1999,
https://doi.org/10.1145/307400.307439). The mean of these losses is the score of a
candidate: one that learns fast loses little. Scores of the last examples alone, and
candidates between those of the grid, were tried on the tasks of development of
`benchmarks/quality/search_tasks.py`; neither was better.

The losses of a candidate come as means over windows of equal length. Two candidates are
compared window by window. The examples are the same, so what makes one window harder
than another makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trial:
    """What one candidate has lost.

    Attributes:
        rate: the learning rate.
        windows: mean losses, in the order of visits; None where one was not finite.
        count: updates with a loss; fewer than with another rate where some were
            skipped, as not finite.
        num_examples: that it visited.
    """

    rate: float
    windows: tuple[float, ...] | None
    count: float
    num_examples: int

    @property
    def means(self) -> np.ndarray:
        """The windows as an array."""
        return np.asarray(self.windows or ())

    @property
    def score(self) -> float:
        """The mean loss; infinite where one was not finite."""
        if self.windows is None or np.isnan(self.means).all():
            return math.inf
        return float(np.nanmean(self.means))

    @property
    def error(self) -> float:
        """The standard error of the score."""
        return _error(self.means) if self.score < math.inf else math.nan


_MADE = 0.9  # part of the updates that have to be made


def comparable(trials: Iterable[Trial]) -> list[Trial]:
    """The trials whose losses were all finite, and whose updates were made.

    A rate with which many updates are skipped, as not finite, hides what it loses. A
    few are skipped with any rate: bad examples, and while a loss scale settles.
    """
    finite = [trial for trial in trials if trial.score < math.inf]
    most = max((trial.count for trial in finite), default=0)
    return [trial for trial in finite if trial.count >= _MADE * most]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the lowest score, or None if none can be compared."""
    return min(comparable(trials), key=lambda t: t.score, default=None)


def alike(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are within one standard error of the best; itself is one."""
    best, found = best_of(trials), []
    if best is None:
        return []
    for trial in comparable(trials):
        difference = trial.means - best.means
        if trial is best or np.nanmean(difference) <= _error(difference):
            found.append(trial)
    return found


def _error(values: np.ndarray) -> float:
    # The standard error of their mean; NaN of one.
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.nan
    return float(known.std(ddof=1) / math.sqrt(len(known)))
