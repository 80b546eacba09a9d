"""A batch that cuts a group short warns once, unless it is the last batch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from keras_sgd_plus import SGDPlus
from tests.support.messages import (
    X,
    Y,
    caught_by,
    compiled,
    fit,
)
from tests.support.twins import (
    dense_data,
    dense_model,
)


def _warnings_of(
    size: int, group: int, num_examples: int = 48, **fit: Any
) -> list[str]:
    x, y = dense_data(num_examples)
    model = dense_model()
    model.compile(SGDPlus(0.01, examples_per_update=group, jit_compile=False), "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, batch_size=size, epochs=3, verbose=0, **fit)
    return [str(w.message) for w in caught if "examples_per_update" in str(w.message)]


def test_uneven_groups_are_warned_of_once_with_the_numbers() -> None:
    (message,) = _warnings_of(size=10, group=4)
    assert "examples_per_update=4" in message
    assert "after 10 examples with a group of 2" in message


def test_a_batch_below_a_group_is_warned_of() -> None:
    (message,) = _warnings_of(size=8, group=16)
    assert "after 8 examples with a group of 8" in message


@pytest.mark.parametrize(
    ("size", "num_examples"), [(16, 48), (16, 42), (42, 42)], ids=str
)
def test_only_the_last_batch_may_be_uneven(size: int, num_examples: int) -> None:
    assert _warnings_of(size, 4, num_examples) == []


UNEVEN = "Use a batch_size that"


@pytest.mark.parametrize(
    ("batch_size", "numbers"),
    [
        (4, "after 4 examples with a group of 1"),  # batches of 4 and 2, groups of 3
        (2, "after 2 examples with a group of 2"),  # smaller than a group
    ],
)
def test_uneven_groups_warn_once(batch_size: int, numbers: str) -> None:
    model = compiled(plus={"examples_per_update": 3})
    run = lambda: fit(model, batch_size=batch_size, epochs=2)  # noqa: E731
    texts = caught_by(run, UNEVEN)
    assert len(texts) == 1
    assert "examples_per_update=3" in texts[0]
    assert numbers in texts[0]
    assert caught_by(run, UNEVEN) == []


@pytest.mark.parametrize("batch_size", [3, 6])
@pytest.mark.parametrize("k", [1, 3])
def test_even_groups_are_silent(k: int, batch_size: int) -> None:
    model = compiled(plus={"examples_per_update": k})
    assert caught_by(lambda: fit(model, batch_size=batch_size), UNEVEN) == []


def test_short_last_batch_is_silent() -> None:
    model = compiled(plus={"examples_per_update": 2})

    def run() -> None:
        model.fit(X[:5], Y[:5], batch_size=4, epochs=2, verbose=0)

    assert caught_by(run, UNEVEN) == []
    assert int(model.optimizer.iterations) == 2 * 3
