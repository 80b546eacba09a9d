"""Nothing keeps a model or an optimizer alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from keras_sgd_plus import SGDPlus
from tests.support.steps import (
    EXAMPLES,
    GIVEN,
    batches,
    fit,
)
from tests.support.twins import linear_model


def _use(model: Any, optimizer: Any, by_hand: bool) -> None:
    model.compile(optimizer, loss="mse", metrics=["mae"])
    if by_hand:
        for batch in batches():
            optimizer.train_step(model, batch)
    else:
        fit(model)


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_deleted_model_is_collected(by_hand: bool, engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    _use(model, optimizer, by_hand)
    assert engagements
    gone = weakref.ref(model), weakref.ref(model.layers[0])
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert int(optimizer.iterations) == EXAMPLES  # it is the model that went


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_deleted_optimizer_is_collected(by_hand: bool, engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    _use(model, optimizer, by_hand)
    assert engagements
    model.compile("sgd", loss="mse")
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert model.built
