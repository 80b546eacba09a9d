"""The compiled loop makes the updates of NumPy's oracle and of Keras's SGD."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.cases import FLOAT64, SGD_ARGS, inverse_time, inverse_time_schedule
from tests.support.oracle import Oracle
from tests.support.tiers import tiered_rows
from tests.support.twins import assert_same, dense_data, dense_model, train_pair


def _float64_run(
    plus: dict[str, Any], layers: int = 2, **fit: Any
) -> tuple[Any, Oracle]:
    """A float64 model after `fit`, and an oracle that starts from the same weights."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    x, y = dense_data(20)
    if layers == 2:
        model: Any = dense_model()
    else:
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    oracle = Oracle(model.get_weights())
    model.compile(SGDPlus(**plus), "mse")
    model.fit(x.astype("float64"), y.astype("float64"), verbose=0, **fit)
    return model, oracle


def _assert_equals_oracle(model: Any, oracle: Oracle) -> None:
    optimizer = model.optimizer
    assert int(optimizer._iterations) == oracle.iterations
    columns = [(model.trainable_variables, oracle.weights)]
    if optimizer.momentum:
        columns.append((optimizer.momentums, oracle.velocities))
    if optimizer.use_ema:
        averages = optimizer._model_variables_moving_average
        columns.append((averages, oracle.averages))
    for variables, arrays in columns:
        for variable, array in zip(variables, arrays, strict=True):
            np.testing.assert_allclose(
                variable.numpy(), array, rtol=FLOAT64, atol=1e-14
            )


@pytest.mark.parametrize("layers", [1, 2], ids=["linear", "hidden"])
def test_plain_updates_equal_numpy(layers: int, engagements: list[str]) -> None:
    plus = {"learning_rate": 0.02, "order": "given"}
    model, oracle = _float64_run(plus, layers, batch_size=8, shuffle=False, epochs=2)
    x, y = dense_data(20)
    oracle.visit(x, y, [*range(20), *range(20)])
    _assert_equals_oracle(model, oracle)
    assert engagements


@pytest.mark.parametrize(
    "arguments", tiered_rows(SGD_ARGS, "nesterov", "accumulation", "everything")
)
def test_option_equals_numpy(arguments: dict[str, Any], engagements: list[str]) -> None:
    plus = {"learning_rate": 0.05, "order": "given", **arguments}
    model, oracle = _float64_run(plus, batch_size=8, shuffle=False)
    x, y = dense_data(20)
    plain = Oracle(list(oracle.weights), 0.05)
    plain.visit(x, y, range(20))
    twin = Oracle(list(oracle.weights), 0.05, **arguments)
    twin.visit(x, y, range(20))
    twin.finish()
    _assert_equals_oracle(model, twin)
    assert engagements
    # The option changes the result: without it this test would fail.
    pairs = zip(plain.weights, twin.weights, strict=True)
    gaps = [np.abs(a - b).max() for a, b in pairs]
    assert max(gaps) > 1e-4


def test_schedule_counts_updates() -> None:
    schedule = inverse_time_schedule()
    plus = {"learning_rate": schedule, "momentum": 0.875, "order": "given"}
    model, oracle = _float64_run(plus, batch_size=8, shuffle=False)
    oracle.learning_rate, oracle.momentum = inverse_time, 0.875
    x, y = dense_data(20)
    oracle.visit(x, y, range(20))
    # Keras computes the schedule in float32, which limits the agreement.
    for variable, array in zip(model.trainable_variables, oracle.weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), array, rtol=1e-6, atol=1e-8)


def test_reshuffled_updates_equal_numpy_in_that_order() -> None:
    from tests.support.internals import visiting_order

    plus = {"learning_rate": 0.05, "momentum": 0.875, "seed": 11}
    model, oracle = _float64_run(plus, batch_size=8, shuffle=False)
    oracle.learning_rate, oracle.momentum = 0.05, 0.875
    x, y = dense_data(20)
    for start in range(0, 20, 8):
        size = min(8, 20 - start)
        order = visiting_order(11, start, size).numpy() + start
        oracle.visit(x, y, order)
    _assert_equals_oracle(model, oracle)


@pytest.mark.parametrize("arguments", tiered_rows(SGD_ARGS, "everything"))
def test_option_equals_keras(arguments: dict[str, Any], engagements: list[str]) -> None:
    x, y = dense_data()
    sgd = {"learning_rate": 0.05, **arguments}
    pair = train_pair(dense_model, x, y, sgd=sgd, fit={"epochs": 2})
    assert_same(pair)
    assert engagements
    assert int(pair.ours.optimizer._iterations) == 60


@pytest.mark.matrix
@pytest.mark.parametrize("order", ["given", "reshuffle"])
def test_two_batches_equal_one(order: str) -> None:
    """The batch size changes the result if, and only if, batches are reshuffled."""
    x, y = dense_data(24)
    results = []
    for batch_size in (24, 8):
        keras.utils.set_random_seed(0)
        model = dense_model()
        model.compile(SGDPlus(0.05, 0.9, order=order, seed=1), "mse")
        model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        results.append(model.get_weights())
    gap = max(np.abs(a - b).max() for a, b in zip(*results, strict=True))
    assert gap < 1e-6 if order == "given" else gap > 1e-4


@pytest.mark.matrix
def test_permuted_data_in_given_order_equal_the_permuted_order() -> None:
    from tests.support.internals import visiting_order

    x, y = dense_data(24)
    order = visiting_order(5, 0, 24).numpy()
    results = []
    for optimizer, rows in (
        (SGDPlus(0.05, 0.9, seed=5), np.arange(24)),
        (SGDPlus(0.05, 0.9, order="given"), order),
    ):
        keras.utils.set_random_seed(0)
        model = dense_model()
        model.compile(optimizer, "mse")
        model.fit(x[rows], y[rows], batch_size=24, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_learning_rate_zero_changes_nothing() -> None:
    x, y = dense_data(16)
    model = dense_model()
    before = model.get_weights()
    model.compile(SGDPlus(0.0, momentum=0.9, weight_decay=0.1), "mse")
    model.fit(x, y, batch_size=8, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 16


@pytest.mark.matrix
def test_zero_weights_still_move_by_momentum_and_decay() -> None:
    """As in Keras, a weight of zero makes the gradient zero, and nothing else."""
    x, y = dense_data(16)
    weights = np.where(np.arange(16) < 8, 1.0, 0.0).astype("float32")
    fit = {"sample_weight": weights}
    sgd = {"momentum": 0.9, "weight_decay": 0.1}
    pair = train_pair(dense_model, x, y, sgd=sgd, fit=fit)
    assert_same(pair)
    half = train_pair(dense_model, x[:8], y[:8], sgd=sgd)
    a, b = pair.ours.get_weights()[0], half.ours.get_weights()[0]
    assert np.abs(a - b).max() > 1e-3
