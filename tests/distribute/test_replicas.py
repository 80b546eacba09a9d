"""Replicas on logical CPUs do local SGD, as NumPy and a simulation do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import FLOAT64, SGD_ARGS, inverse_time_schedule
from tests.support.messages import normalises
from tests.support.oracle import Oracle
from tests.support.replicas import (
    Simulation,
    compiled,
    dropout_model,
    keras_twin,
    mean,
    mirrored,
    shards,
    state,
    together,
    visit,
)
from tests.support.twins import dense_data, dense_model

pytestmark = normalises

layers = keras.layers
MATRIX = pytest.mark.matrix
# test_updates.py proves the rule; these prove that replicas average all its state.
SHARED = ("momentum", "decay_momentum", "global_clipnorm", "ema", "ema_overwrite")


# Batches of 7 of 30 examples: parts of 4 and 3; the last batch, 1 and 1 or 1 and 0.
def _float64_run(
    num_replicas: int, num_examples: int, **plus: Any
) -> tuple[Any, Oracle]:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    x, y = (part.astype("float64") for part in dense_data(num_examples))
    strategy = mirrored(num_replicas)
    with strategy.scope():
        model = dense_model()
        model.compile(SGDPlus(order="given", **plus), "mse", metrics=["mae"])
    oracle = Oracle(model.get_weights())
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    model.fit(x, y, epochs=2, **fit)
    together(model, strategy)
    for name, value in plus.items():
        setattr(oracle, name, value)
    for _ in range(2):
        visit(oracle, shards(strategy, (x, y), 7))
    return model, oracle


@pytest.mark.parametrize(
    "num_replicas, num_examples, arguments",
    [
        *(
            pytest.param(2, 30, a, id=k, marks=() if k == "momentum" else MATRIX)
            for k, a in SGD_ARGS.items()
            if k in SHARED
        ),
        pytest.param(3, 30, {"momentum": 0.875}, id="three", marks=MATRIX),
        pytest.param(
            4, 29, {"momentum": 0.875}, id="four-three-of-them-idle", marks=MATRIX
        ),
    ],
)
def test_equals_numpy(
    num_replicas: int, num_examples: int, arguments: Any, engagements: list[str]
) -> None:
    plus = {"learning_rate": 0.05, **arguments}
    model, oracle = _float64_run(num_replicas, num_examples, **plus)
    assert engagements == [model.name] * num_replicas
    assert (
        int(model.optimizer.iterations.numpy()) == oracle.iterations == 2 * num_examples
    )
    oracle.finish()
    columns = [(model.trainable_variables, oracle.weights)]
    if "momentum" in arguments:
        columns.append((model.optimizer.momentums, oracle.velocities))
    for variables, arrays in columns:
        for variable, array in zip(variables, arrays, strict=True):
            np.testing.assert_allclose(
                variable.numpy(), array, rtol=FLOAT64, atol=1e-14
            )


def _norm_model() -> Any:
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Reshape((5, 1)),
            layers.Conv1D(3, 2),
            layers.BatchNormalization(momentum=0.8, synchronized=True),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _regularized_model() -> Any:
    regularizer = keras.regularizers.L2(0.1)
    model = dense_model(kernel_regularizer=regularizer, activity_regularizer="l1")
    return model


CASES: dict[str, Callable[[], Any]] = {
    "schedule": lambda: compiled(
        dense_model, order="given", learning_rate=inverse_time_schedule()
    )(),
    "reshuffled": compiled(dense_model, seed=5),
    "groups": compiled(dense_model, order="given", examples_per_update=3),
    "dropout": compiled(dropout_model, order="given"),
    "batch-normalization": compiled(_norm_model, order="given"),
    "ema": compiled(
        dense_model,
        order="given",
        use_ema=True,
        ema_momentum=0.8,
        ema_overwrite_frequency=4,
    ),
    "sum-reduction": compiled(
        dense_model, keras.losses.MeanSquaredError("sum"), order="given"
    ),
    "regularizers": compiled(_regularized_model, order="given"),
    "without-xla": compiled(dense_model, order="given", jit_compile=False),
    "loss-scale": compiled(dense_model, order="given", scaled=True),
}
SLOW = ("schedule", "ema", "regularizers")


@pytest.mark.filterwarnings("ignore:Every batch of an epoch but the last")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=pytest.mark.slow if name in SLOW else MATRIX)
        for name, make in CASES.items()
    ],
)
def test_equals_replicas_one_after_the_other(
    make: Callable[[], Any], engagements: list[str]
) -> None:
    """Parts have 4 and 3 examples; the last batch has 1, so one replica gets none."""
    x, y = dense_data(29)
    weight = np.linspace(0.5, 2, 29).astype("float32")
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(make)
    before = [v.numpy() for v in model.trainable_variables]
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, sample_weight=weight, epochs=2, **fit).history
    assert engagements == [model.name] * 2
    together(model, strategy)
    simulation = Simulation(lambda: keras_twin(make), ("dynamic_scale", "step_counter"))
    twin = simulation.model
    if not any(isinstance(layer, layers.Dropout) for layer in twin.layers):
        inner = getattr(twin.optimizer, "inner_optimizer", twin.optimizer)
        inner.jit_compile = False  # saves time; dropout would draw other numbers
    losses = []
    for _ in range(2):
        losses.append(simulation.train(shards(strategy, (x, y, weight), 7)))
    twin.optimizer.finalize_variable_values(twin.trainable_variables)
    after = [v.numpy() for v in twin.trainable_variables]
    moves = [abs(a - b).max() for a, b in zip(after, before, strict=True)]
    for ours, theirs in zip(state(model), state(twin), strict=True):
        if ours.dtype in ("int64", "int32") or "scale" in ours.path:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), ours.path)
        else:
            gap = abs(ours.numpy() - theirs.numpy()).max()
            assert gap < 2e-6 * max(moves) * 58**0.5, ours.path
    for name, values in history.items():
        expected = [logs[name] for logs in losses]
        np.testing.assert_allclose(values, expected, rtol=2e-5, err_msg=name)


@pytest.mark.matrix
def test_orders_and_masks_differ_between_replicas() -> None:
    """Each replica has the same data; only its number tells it from the others."""
    x = np.tile(np.arange(1, 5, dtype="float32")[:, None], (2, 1))
    results = {}
    for name, make in {
        "order": compiled(lambda: _linear(0.0), momentum=0.0, seed=3),
        "given": compiled(lambda: _linear(0.0), momentum=0.0, order="given"),
        "masks": compiled(lambda: _linear(0.5), momentum=0.0, order="given"),
    }.items():
        strategy = mirrored(2)
        with strategy.scope():
            model = keras_twin(make)
        model.fit(x, x**2, batch_size=8, shuffle=False, verbose=0)
        alone = keras_twin(make)
        alone.fit(x[:4], x[:4] ** 2, batch_size=4, shuffle=False, verbose=0)
        gaps = [
            abs(a - b).max()
            for a, b in zip(model.get_weights(), alone.get_weights(), strict=True)
            if a.dtype.kind == "f"
        ]
        results[name] = max(gaps)
    # Two equal walks average to that walk; two different ones do not.
    assert results["given"] < 1e-7
    assert results["order"] > 1e-4
    assert results["masks"] > 1e-3


def _linear(rate: float) -> Any:
    dropout = [layers.Dropout(rate)] if rate else []
    return keras.Sequential([keras.Input((1,)), *dropout, layers.Dense(1)])


@pytest.mark.matrix
def test_none_is_stock_synchronous_sgd() -> None:
    x, y = dense_data(30)
    models = []
    for optimizer in (keras.optimizers.SGD, SGDPlus):
        extra = {"examples_per_update": None} if optimizer is SGDPlus else {}
        strategy = mirrored(2)
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = dense_model()
            model.compile(optimizer(0.05, 0.9, **extra), "mse")
        model.fit(x, y, batch_size=10, shuffle=False, verbose=0)
        models.append(model)
    assert int(models[1].optimizer.iterations.numpy()) == 3
    for theirs, ours in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.matrix
def test_one_replica_is_none() -> None:
    """One replica runs the same compiled code, so the results are bit-equal."""
    x, y = dense_data(30)
    results = []
    for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), mirrored(1)):
        with strategy.scope():
            model = keras_twin(compiled(dropout_model, seed=2))
        model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
        results.append(model.get_weights())
    # Without a strategy XLA writes variables in place, so rounding may differ.
    plain = keras_twin(compiled(dropout_model, seed=2))
    plain.fit(x, y, batch_size=7, shuffle=False, verbose=0)
    results.append(plain.get_weights())
    for one, other, none in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, none, rtol=1e-6, atol=1e-7)


_ONLY_NONE = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
from keras_sgd_plus import SGDPlus

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(SGDPlus(examples_per_update=None), loss="mse")
model.fit(np.ones((14, 2)), np.ones((14, 1)), batch_size=7, verbose=0)
assert int(model.optimizer.iterations.numpy()) == 2
"""


@pytest.mark.matrix
def test_none_with_parts_of_unequal_size() -> None:
    """The process has made no other SGDPlus."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _ONLY_NONE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_simulated_mean_is_by_examples() -> None:
    np.testing.assert_allclose(mean([np.zeros(2), np.ones(2)], [3, 1]), 0.25)
