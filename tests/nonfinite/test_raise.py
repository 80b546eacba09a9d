"""`nonfinite="raise"` stops training before the bad example; then it can go on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.bad_examples import (
    BAD,
    NUM_EXAMPLES,
    ROUNDING,
    compiled,
    data,
    dense,
    root,
)
from tests.support.compare import difference, snapshot
from tests.support.messages import (
    ErrorRow,
    Row,
    X,
    Y,
    assert_refused,
    error_rows,
)
from tests.support.tiers import matrix, tiered_keys
from tests.support.twins import dense_data, linear_model

WAYS: dict[str, tuple[dict[str, Any], Callable[[Any, Any, Any], Any]]] = {
    "fit": ({}, lambda m, x, y: m.fit(x, y, batch_size=8, shuffle=False, verbose=0)),
    "eagerly": (
        {"run_eagerly": True},
        lambda m, x, y: m.fit(x, y, batch_size=8, shuffle=False, verbose=0),
    ),
    "keras_compiles": (
        {"jit_compile": True},
        lambda m, x, y: m.fit(x, y, batch_size=8, shuffle=False, verbose=0),
    ),
    "steps_per_execution": (
        {"steps_per_execution": 2},
        lambda m, x, y: m.fit(x, y, batch_size=8, shuffle=False, verbose=0),
    ),
    "train_on_batch": ({}, lambda m, x, y: m.train_on_batch(x, y)),
    "train_step": ({}, lambda m, x, y: m.optimizer.train_step(m, (x, y))),
    "function": (
        {},
        lambda m, x, y: tf.function(m.optimizer.train_step)(m, (x, y)),
    ),
}


@pytest.mark.parametrize("cause", ["loss", *matrix("gradient")])
@pytest.mark.parametrize("way", tiered_keys(WAYS, "fit"))
def test_raise_stops_before_it(way: str, cause: str, engagements: list[str]) -> None:
    settings, train = WAYS[way]
    x, y = data(cause)
    clean, _ = dense_data(NUM_EXAMPLES)
    x[[0, 4]], y[4] = clean[[0, 4]], 0.0  # the first bad one is 5
    make = dense if cause == "loss" else root
    plus = SGDPlus(0.02, momentum=0.9, order="given", nonfinite="raise")
    model = compiled(make, plus)
    model.compile(plus, "mse", **settings)
    name = "a loss that" if cause == "loss" else "a gradient of .*/kernel' that"
    error = FloatingPointError if way != "function" else tf.errors.OpError
    with pytest.raises(error, match=f"{name} is not finite at position 5 of batch 0"):
        train(model, x, y)
    assert engagements
    assert int(plus.iterations) == 5
    theirs = compiled(make, keras.optimizers.SGD(0.02, momentum=0.9))
    before = snapshot(theirs)
    theirs.fit(x[:5], y[:5], batch_size=1, shuffle=False, verbose=0)
    ours = {k: v for k, v in snapshot(model).items() if "metric" not in k}
    assert difference(before, ours, snapshot(theirs)).relative < ROUNDING
    train(model, *dense_data(NUM_EXAMPLES))  # training goes on
    assert int(plus.iterations) == 5 + NUM_EXAMPLES


@pytest.mark.matrix
@pytest.mark.parametrize("k", [4, 3])
def test_raise_in_groups(k: int) -> None:
    x, y = dense_data(NUM_EXAMPLES)
    y[-1] = np.nan
    plus = SGDPlus(0.02, order="given", nonfinite="raise", examples_per_update=k)
    model = compiled(dense, plus)
    places = "12, 13, 14, 15" if k == 4 else "15"
    with pytest.raises(FloatingPointError, match=rf"positions? {places} of batch"):
        model.train_on_batch(x, y)
    assert int(plus.iterations) == 15 // k
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.matrix
def test_a_fault_before_the_rest_leaves_the_rest() -> None:
    x, y = dense_data(7)
    x[0] = np.nan
    settings = {"order": "given", "nonfinite": "raise", "examples_per_update": 4}
    model = compiled(dense, SGDPlus(0.02, **settings))
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match="positions 0, 1, 2, 3 of batch 0"):
        model.train_on_batch(x, y)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_raise_names_the_batch_of_the_epoch() -> None:
    x, y = dense_data(24)
    y[19] = np.inf
    model = compiled(dense, SGDPlus(0.02, nonfinite="raise"))
    model.fit(x, np.nan_to_num(y, posinf=0), batch_size=8, verbose=0)
    match = "position 3 of batch 2 of the epoch, which began after 40 updates"
    with pytest.raises(FloatingPointError, match=match):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)


@pytest.mark.matrix
def test_what_was_skipped_before_is_not_raised_later() -> None:
    x, y = data()
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train_on_batch(x, y)
    model.optimizer.nonfinite = "raise"
    clean = dense_data(NUM_EXAMPLES)
    model.train_on_batch(*clean)
    assert int(model.optimizer.iterations) == 2 * NUM_EXAMPLES
    model.reset_metrics()  # Keras 3.13 does not in train_on_batch
    with pytest.raises(FloatingPointError, match="of batch 0"):
        model.train_on_batch(x, y)
    model.optimizer.nonfinite = "skip"
    model.train_on_batch(*clean)
    assert len(model.optimizer.skipped_examples()) == len(BAD)


def _fit_nan(model: Any) -> None:
    model.compile(SGDPlus(nonfinite="raise"), "mse")
    model.fit(X * np.nan, Y, verbose=0)


ERRORS: dict[str, ErrorRow] = {
    "not_finite": (
        linear_model,
        ("not_finite", _fit_nan, FloatingPointError, "or lower the learning_rate"),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)
