"""Momentum and weight decay are rounded as Keras rounds them, in float64 too."""

from __future__ import annotations

import pytest

from tests.rule.test_capped_step import in_float64
from tests.support.tiers import matrix
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    linear_model,
    train_pair,
)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": 0.1},
        *matrix({"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}),
    ],
    ids=lambda settings: "-".join(settings),
)
def test_equals_keras(settings: dict[str, float], engagements: list[str]) -> None:
    """0.1 and 0.9 differ from their float32 neighbours by more than the bound."""
    in_float64()
    x, y = dense_data(20)
    sgd = {"learning_rate": 0.0625, **settings}
    pair = train_pair(linear_model, x.astype("float64"), y.astype("float64"), sgd=sgd)
    assert pair.ours.trainable_variables[0].dtype == "float64"
    assert_same(pair, tolerance=1e-12, logs=1e-6)
    assert_engaged(pair, engagements, 20)
