"""SGDPlus reports skipped examples: positions, counts, logs, one warning per fit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.bad_examples import (
    BAD,
    NUM_EXAMPLES,
    compiled,
    data,
    dense,
    quiet_fit,
)
from tests.support.twins import dense_data, dense_model


def test_positions_are_those_handed_over_in_any_order() -> None:
    x, y = data()
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip", seed=5))
    quiet_fit(model, x, y, batch_size=16)
    found = [e.positions for e in model.optimizer.skipped_examples()]
    assert sorted(found) == [(i,) for i in BAD] and found != sorted(found)


@pytest.mark.matrix
def test_labels_out_of_range_are_found() -> None:
    x, _ = dense_data(NUM_EXAMPLES)
    y = np.arange(NUM_EXAMPLES) % 2
    y[3] = 7
    model = dense_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(0.02, order="given", nonfinite="skip"), loss)
    with pytest.warns(UserWarning, match="position 3 of batch 0.*labels out of range"):
        model.fit(x, y, verbose=0, shuffle=False)
    model.compile(SGDPlus(0.02, order="given", nonfinite="raise"), loss)
    with pytest.raises(FloatingPointError, match="position 3.*labels out of range"):
        model.fit(x, y, verbose=0, shuffle=False)


def test_warns_once_per_fit_and_forgets_the_last() -> None:
    x, y = data()
    clean, targets = dense_data(NUM_EXAMPLES)
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip"))
    with pytest.warns(UserWarning) as record:
        history = model.fit(
            x, y, batch_size=8, epochs=3, validation_data=(clean, targets), verbose=0
        ).history
    assert len([w for w in record if "left out 12 update" in str(w.message)]) == 1
    assert history["skipped"] == [4, 4, 4]
    assert len(model.optimizer.skipped_examples()) == 12
    history = model.fit(clean, targets, verbose=0).history  # warnings are errors
    assert history["skipped"] == [0]
    assert model.optimizer.skipped_examples() == []


@pytest.mark.matrix
def test_more_than_are_remembered_are_counted() -> None:
    x = np.full((1_500, 5), np.nan, "float32")
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip"))
    before = model.get_weights()
    history = quiet_fit(model, x, x[:, :2], batch_size=400).history
    assert history["skipped"] == [1_500] and history["loss"] == [0.0]
    found = model.optimizer.skipped_examples()
    assert len(found) == 1_000 and found[-1].batch == 2
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_counts_are_no_variables() -> None:
    x, y = data()
    plain = compiled(dense, SGDPlus(0.02, jit_compile=False))
    model = compiled(dense, SGDPlus(0.02, nonfinite="skip", jit_compile=False))
    quiet_fit(plain, x, y)
    quiet_fit(model, x, y)
    for ours, theirs in ((model, plain), (model.optimizer, plain.optimizer)):
        assert len(ours.variables) == len(theirs.variables)


class Logging(keras.Model):
    """Logs of its own, from one update alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        return {"largest": keras.ops.max(keras.ops.abs(x))}


@pytest.mark.matrix
@pytest.mark.parametrize("k", [1, 2])
def test_own_logs_are_those_of_the_last_that_counted(k: int) -> None:
    x = np.array([[1], [2], [np.nan]], "float32")
    model = Logging()
    plus = SGDPlus(0.01, order="given", nonfinite="skip", examples_per_update=k)
    model.compile(plus, "mse")
    logs = model.train_on_batch(x, x, return_dict=True)
    assert logs["largest"] == 2.0 and logs["skipped"] == 1.0
