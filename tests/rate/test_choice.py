"""The rule of the search, on losses that are made up."""

from __future__ import annotations

import math

import numpy as np

from tests.support.internals import choice


def _trial(rate: float, *windows: float) -> choice.Trial:
    return choice.Trial(rate, windows, 16, 2_000)


def test_the_mean_loss_counts() -> None:
    slow = _trial(0.001, 9, 9, 1, 2, 1, 2)
    fast = _trial(0.01, 1, 1, 2, 3, 2, 3)
    assert choice.best_of([slow, fast]) is fast
    assert slow.score == 4
    expected = np.std([9, 9, 1, 2, 1, 2], ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(slow.error, expected)


def test_what_is_not_finite_is_never_the_best() -> None:
    failed = choice.Trial(1.0, None, 3, 2_000)
    fine = _trial(0.1, 5, 5, 5, 5)
    assert choice.best_of([failed, fine]) is fine
    assert choice.alike([failed, fine]) == [fine]
    assert failed.score == math.inf and math.isnan(failed.error)


def test_differences_are_taken_window_by_window() -> None:
    """What makes a window hard makes it so for all: errors alone would hide it."""
    best = _trial(0.01, 1, 9, 2, 8)
    a_little_worse = _trial(0.1, 1.2, 9.3, 2.2, 8.3)
    same = _trial(0.001, 1.3, 8.8, 2.2, 7.8)
    assert best.error > 1
    assert choice.alike([best, a_little_worse, same]) == [best, same]


def test_one_window_says_nothing_of_chance() -> None:
    a, b = _trial(0.1, 1.0), _trial(0.2, 1.1)
    assert choice.alike([a, b]) == [a]
    assert math.isnan(a.error)


def test_windows_without_an_update_count_for_nothing() -> None:
    nothing = math.nan
    a = _trial(0.1, 1, 1, nothing, 2, 3, 2)
    b = _trial(0.2, 1, 1, nothing, 3, 4, 3.1)
    assert choice.best_of([a, b]) is a
    assert choice.alike([a, b]) == [a]
