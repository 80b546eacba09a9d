"""Random models, data and options: SGDPlus equals Keras's SGD at `batch_size=1`.

A dozen cases run in the matrix, 300 in the slow set. A case that fails prints itself:
`train(Case(...))` runs it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import keras
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.compare import bound_of, rounding, snapshot
from tests.support.fuzz import Case, assert_evaluate_alike, cases, train
from tests.support.fuzz_models import MODELS
from tests.support.messages import normalises, short_schedules
from tests.support.structures import put_back_the_old_fault
from tests.support.twins import assert_engaged, assert_same

pytestmark = [normalises, short_schedules]

SHARDS, CASES_PER_SHARD = 6, 54  # over 300 different ones
FUZZ = settings(
    database=None,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # no shrinking: a case is small as it is
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def check(case: Case, engagements: list[str]) -> float:
    """Trains both, compares everything, and gives the difference, in bounds."""
    engagements.clear()
    try:
        pair = train(case)
        assert_engaged(pair, engagements, case.num_updates)
        bound = bound_of(case.dtype, case.num_updates)
        if case.dtype != "float64":
            bound += rounding(pair.before, snapshot(pair.theirs))
        assert_same(pair, bound)
        assert_evaluate_alike(case, pair)
    except BaseException as error:
        error.add_note(f"To run it again: train({case!r})")
        raise
    return pair.difference().relative / bound


def fuzz(num_cases: int, shard: int, engagements: list[str]) -> dict[Case, float]:
    """Checks random cases, each once; their differences."""
    done: dict[Case, float] = {}

    @seed(shard)
    @settings(FUZZ, max_examples=num_cases)
    @given(cases())
    def run(case: Case) -> None:
        if case not in done:
            done[case] = check(case, engagements)
            keras.backend.clear_session()  # or each makes the next one slower

    run()
    return done


@pytest.mark.matrix
def test_a_dozen_random_cases_equal_keras(engagements: list[str]) -> None:
    done = fuzz(12, SHARDS, engagements)
    assert len(done) >= 11
    assert len({case.model for case in done}) >= 5


@pytest.mark.slow
def test_the_fuzzer_finds_losses_built_for_another_structure(
    engagements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back_the_old_fault(monkeypatch)
    with pytest.raises(AssertionError):
        fuzz(20, 0, engagements)


@pytest.fixture(scope="module")
def all_done() -> dict[Case, float]:
    """The cases that the shards have checked."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_cases_equal_keras(
    shard: int, engagements: list[str], all_done: dict[Case, float]
) -> None:
    done = fuzz(CASES_PER_SHARD, shard, engagements)
    assert len(done) > CASES_PER_SHARD * 0.9
    all_done.update(done)


@pytest.mark.slow
def test_random_cases_are_many_and_various(
    all_done: dict[Case, float], summary: Callable[[str], None]
) -> None:
    if not all_done:
        pytest.skip("the shards ran elsewhere")
    summary(f"fuzz: {len(all_done)} cases, the largest difference in bounds:")
    for kind in ("dtype", "model"):
        names = Counter(asdict(case)[kind] for case in all_done)
        worst = {
            name: max(d for c, d in all_done.items() if asdict(c)[kind] == name)
            for name in names
        }
        shown = (f"{name} {worst[name]:.2g} of {names[name]}" for name in sorted(names))
        summary(f"  {kind}: {', '.join(shown)}")
    assert len(all_done) >= 300
    assert len({case.model for case in all_done}) == len(MODELS)
    for field, value in asdict(Case()).items():  # no option is left at its default
        assert any(asdict(case)[field] != value for case in all_done), field
