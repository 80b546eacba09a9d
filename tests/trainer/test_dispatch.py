"""The hook takes models of SGDPlus, and no others."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import hooks
from tests.support.steps import (
    EXAMPLES,
    GIVEN,
    MOMENTUM,
    PLAIN,
    SGD,
    assert_close,
    by_optimizer,
    by_super,
    fit,
    own_step,
    state_of,
    trained,
)
from tests.support.tiers import matrix
from tests.support.twins import linear_model


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("cls", [keras.optimizers.Adam, *matrix(SGD)])
def test_other_optimizers_are_untouched(
    cls: type, run_eagerly: bool, engagements: list[str]
) -> None:
    runs = []
    for hooked in (True, False):
        hooks.install() if hooked else hooks.uninstall()
        optimizer = cls(0.01)
        model = trained(optimizer, run_eagerly=run_eagerly)
        runs.append(state_of(model, optimizer))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(runs[0][2]) == EXAMPLES // 4  # iterations: per batch
    assert engagements == []


def test_seen_through_loss_scale_optimizer(engagements: list[str]) -> None:
    wrap = keras.optimizers.LossScaleOptimizer
    inner, outer = SGDPlus(**PLAIN), wrap(SGD(**MOMENTUM), dynamic_growth_steps=5)
    ours = trained(wrap(inner, dynamic_growth_steps=5))
    assert set(engagements) == {ours.name}
    theirs = trained(outer, batch_size=1)
    assert int(inner.iterations) == EXAMPLES
    assert_close(state_of(ours, ours.optimizer), state_of(theirs, outer))
    assert float(ours.optimizer.dynamic_scale) > 2.0**15  # and it did grow


@pytest.mark.parametrize("how", [by_super, by_optimizer])
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_own_train_step_that_hands_on(
    how: Any, run_eagerly: bool, per_example: list[np.ndarray], engagements: list[str]
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = trained(optimizer, own_step(how), run_eagerly=run_eagerly)
    assert set(engagements) == {model.name}
    assert int(optimizer.iterations) == EXAMPLES
    assert_close(state_of(model, optimizer), per_example)


def test_a_train_function_of_the_users_is_left_alone() -> None:
    model = linear_model()
    model.compile(SGDPlus(**PLAIN), "mse")
    calls = []

    def train_function(iterator: Any) -> dict[str, float]:
        next(iterator)
        calls.append(1)
        return {"loss": 0.0}

    model.train_function = train_function
    fit(model)
    assert len(calls) == 3 and model.train_function is train_function


def test_a_train_function_can_be_copied() -> None:
    """A copy is asked for attributes before it has any."""
    function = trained(SGDPlus(**PLAIN)).train_function
    copied = copy.copy(function)
    assert copied.of_keras is function.of_keras
    assert copied.__name__ == function.of_keras.__name__
    assert not hasattr(type(function).__new__(type(function)), "anything")
