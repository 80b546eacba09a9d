"""Random models, data and options: SGDPlus equals Keras's SGD at `batch_size=1`.

A dozen cases run by default, 300 in the slow set. To run one again that failed:
`check(Case(...), [])` with the `Case` that it printed.
"""

from __future__ import annotations

import keras
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.equality import bound_of
from tests.fuzz import Case, cases, train
from tests.twins import assert_engaged, assert_same

SHARDS, CASES_PER_SHARD = 6, 56  # 300 and more, without those that diverge
FUZZ = settings(
    database=None,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a case is small enough as it is
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
# What random options make of rounding: changes that cancel, gradients at a kink, and
# schedules, which Keras computes in float32. An option that was ignored changes a
# hundredth of the change and more.
LIMIT = {"float64": 1e-6, "float32": 1e-3, "mixed_bfloat16": 1e-2}
USUAL = 0.85  # of the cases are within the strict bound, rounding as a random walk


def check(case: Case, engagements: list[str]) -> bool | None:
    """Compares all of both trainings; whether strictly. None: both have diverged."""
    engagements.clear()
    updates = -(-case.num_examples // case.group) * case.epochs
    limit = LIMIT[case.dtype]
    try:
        pair = train(case)
        assert_engaged(pair, engagements, updates)
        assert_same(pair, limit, logs=max(limit, 2e-5))
    except BaseException as error:
        if "diverged" in str(error):
            return None
        error.add_note(f"To run it again: check({case!r}, [])")
        raise
    return pair.difference().relative <= bound_of(case.dtype, updates)


def fuzz(num_cases: int, shard: int, engagements: list[str]) -> list[bool]:
    """Checks distinct cases; whether each that did not diverge is strictly equal."""
    done: dict[Case, bool | None] = {}

    @seed(shard)
    @settings(FUZZ, max_examples=num_cases)
    @given(cases())
    def run(case: Case) -> None:
        if case not in done:
            done[case] = check(case, engagements)
            keras.backend.clear_session()

    run()
    found = [is_strict for is_strict in done.values() if is_strict is not None]
    print(f"{len(found)} cases compared, {sum(found)} within the strict bound")
    return found


def test_random_cases_equal_keras(engagements: list[str]) -> None:
    found = fuzz(13, 100, engagements)
    assert len(found) >= 12
    assert sum(found) >= USUAL * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_more_random_cases_equal_keras(shard: int, engagements: list[str]) -> None:
    found = fuzz(CASES_PER_SHARD, shard, engagements)
    assert len(found) >= 50
    assert sum(found) >= USUAL * len(found)
