"""Several replicas on logical CPUs: local SGD, against NumPy and a simulation."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.cases import FLOAT64, SGD_ARGS, inverse_time_schedule
from tests.oracle import Oracle
from tests.replicas import (
    Simulation,
    copies,
    keras_twin,
    mean,
    mirrored,
    shards,
    state,
    visit,
)
from tests.twins import dense_data, dense_model

layers = keras.layers
# The rule itself is proved in test_updates.py, here that all its state is averaged.
SHARED = ("momentum", "decay_momentum", "global_clipnorm", "ema", "ema_overwrite")


def _together(model: Any, strategy: tf.distribute.Strategy) -> None:
    """Every replica has the same state."""
    for variable in state(model):
        first, *others = copies(strategy, variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


# 30 examples in batches of 7: shards of 4 and 3, the last of 1 and 1, or 1 and 0.
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
    _together(model, strategy)
    for name, value in plus.items():
        setattr(oracle, name, value)
    for _ in range(2):
        visit(oracle, shards(strategy, (x, y), 7))
    return model, oracle


@pytest.mark.parametrize(
    "num_replicas, num_examples, arguments",
    [
        *(pytest.param(2, 30, a, id=k) for k, a in SGD_ARGS.items() if k in SHARED),
        pytest.param(3, 30, {"momentum": 0.875}, id="three"),
        pytest.param(4, 29, {"momentum": 0.875}, id="four-three-of-them-idle"),
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


def _dropout_model() -> Any:
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, activation="tanh"),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
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


def _compiled(make: Any, loss: Any = "mse", scaled: bool = False, **plus: Any) -> Any:
    def compiled() -> Any:
        model = make()
        optimizer: Any = SGDPlus(**{"learning_rate": 0.02, "momentum": 0.9, **plus})
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=2.0**12, dynamic_growth_steps=5
            )
        model.compile(optimizer, loss, metrics=["mae"])
        return model

    return compiled


CASES: dict[str, Callable[[], Any]] = {
    "schedule": lambda: _compiled(
        dense_model, order="given", learning_rate=inverse_time_schedule()
    )(),
    "reshuffled": _compiled(dense_model, seed=5),
    "groups": _compiled(dense_model, order="given", examples_per_update=3),
    "dropout": _compiled(_dropout_model, order="given"),
    "batch-normalization": _compiled(_norm_model, order="given"),
    "ema": _compiled(
        dense_model,
        order="given",
        use_ema=True,
        ema_momentum=0.8,
        ema_overwrite_frequency=4,
    ),
    "sum-reduction": _compiled(
        dense_model, keras.losses.MeanSquaredError("sum"), order="given"
    ),
    "regularizers": _compiled(_regularized_model, order="given"),
    "without-xla": _compiled(dense_model, order="given", jit_compile=False),
    "loss-scale": _compiled(dense_model, order="given", scaled=True),
}


SLOW = ("schedule", "ema", "regularizers")


@pytest.mark.filterwarnings("ignore:Every batch of an epoch but the last")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, make in CASES.items()
    ],
)
def test_equals_replicas_one_after_the_other(
    make: Callable[[], Any], engagements: list[str]
) -> None:
    """Parts of 4 and 3, and a last batch of 1, which leaves a replica without."""
    x, y = dense_data(29)
    weight = np.linspace(0.5, 2, 29).astype("float32")
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(make)
    before = [v.numpy() for v in model.trainable_variables]
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, sample_weight=weight, epochs=2, **fit).history
    assert engagements == [model.name] * 2
    _together(model, strategy)
    simulation = Simulation(lambda: keras_twin(make), ("dynamic_scale", "step_counter"))
    twin = simulation.model
    if not any(isinstance(layer, layers.Dropout) for layer in twin.layers):
        inner = getattr(twin.optimizer, "inner_optimizer", twin.optimizer)
        inner.jit_compile = False  # spares the time; draws would be others
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


def test_orders_and_masks_differ_between_replicas() -> None:
    """Each replica has the same data; only its number tells it from the others."""
    x = np.tile(np.arange(1, 5, dtype="float32")[:, None], (2, 1))
    results = {}
    for name, make in {
        "order": _compiled(lambda: _linear(0.0), momentum=0.0, seed=3),
        "given": _compiled(lambda: _linear(0.0), momentum=0.0, order="given"),
        "masks": _compiled(lambda: _linear(0.5), momentum=0.0, order="given"),
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
    # The average of two equal walks is that walk; of two different ones it is not.
    assert results["given"] < 1e-7
    assert results["order"] > 1e-4
    assert results["masks"] > 1e-3


def _linear(rate: float) -> Any:
    dropout = [layers.Dropout(rate)] if rate else []
    return keras.Sequential([keras.Input((1,)), *dropout, layers.Dense(1)])


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


def test_logs_of_each_batch_are_of_all_replicas() -> None:
    x, y = dense_data(29)
    seen: list[dict[str, float]] = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs)
    )
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(_compiled(dense_model, learning_rate=0.0, momentum=0.0))
    expected = dict(zip(("loss", "mae"), model.evaluate(x, y, verbose=0), strict=True))
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[note], **fit).history
    for name, value in expected.items():
        # The last batch has one example, which a mean over replicas would count as
        # much as the 28 before it.
        assert seen[-1][name] == pytest.approx(value, rel=1e-5)
        assert history[name] == pytest.approx([value], rel=1e-5)


def test_own_logs_are_averaged_by_examples() -> None:
    class Logs(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def compute_metrics(
            self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
        ) -> Any:
            return {"last": keras.ops.mean(y)}

    y = np.array([1, 2, 3, 4, 5], "float32")[:, None]
    strategy = mirrored(2)
    with strategy.scope():
        model = Logs()
        model(y)
        model.compile(SGDPlus(0.01, order="given"), "mse")
    logs = model.fit(y, y, batch_size=5, shuffle=False, verbose=0).history
    assert logs["last"] == pytest.approx([(3 * 3 + 2 * 5) / 5])


def test_one_replica_is_none() -> None:
    """To the last bit: the same compiled code, values in and out."""
    x, y = dense_data(30)
    results = []
    for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), mirrored(1)):
        with strategy.scope():
            model = keras_twin(_compiled(_dropout_model, seed=2))
        model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
        results.append(model.get_weights())
    # Without a strategy XLA writes variables in place; a rest of the groups does not.
    plain = keras_twin(_compiled(_dropout_model, seed=2))
    plain.fit(x, y, batch_size=7, shuffle=False, verbose=0)
    results.append(plain.get_weights())
    for one, other, none in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, none, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "first, second, kind",
    [(2, 1, "model.keras"), (1, 2, "model.keras"), (2, 1, "model.weights.h5")],
)
def test_saved_under_a_strategy_and_loaded_without(
    first: int, second: int, kind: str, tmp_path: Any
) -> None:
    """Training goes on where it was, on another number of replicas, either way."""
    x, y = dense_data(28)
    make = _compiled(dense_model, order="given")
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    with _scope(first):
        model = keras_twin(make)
    model.fit(x, y, **fit)
    path = str(tmp_path / kind)
    model.save(path) if kind.endswith("keras") else model.save_weights(path)
    with _scope(second):
        if kind.endswith("keras"):
            loaded: Any = keras.saving.load_model(path)
        else:
            loaded = make()
            loaded.optimizer.build(loaded.trainable_variables)
            loaded.load_weights(path)
    pairs = list(zip(state(model), state(loaded), strict=True))
    for saved, found in pairs:
        np.testing.assert_array_equal(saved.numpy(), found.numpy(), saved.path)
    loaded.fit(x, y, **fit)
    assert int(loaded.optimizer.iterations.numpy()) == 56
    if second > 1:
        _together(loaded, mirrored(second))


def _scope(num_replicas: int) -> Any:
    several = num_replicas > 1
    return mirrored(num_replicas).scope() if several else contextlib.nullcontext()


@pytest.mark.parametrize("in_function", [True, False], ids=["tf.function", "eager"])
def test_by_hand(in_function: bool) -> None:
    """`strategy.run` of `optimizer.train_step`: as `fit`."""
    x, y = dense_data(8)
    make = _compiled(dense_model, order="given")
    results = []
    for by_hand in (True, False):
        strategy = mirrored(2)
        with strategy.scope():
            model = keras_twin(make)
        if not by_hand:
            model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
            results.append((model.get_weights(), model.get_metrics_result()))
            continue
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)

        def step(batch: Any, model: Any = model) -> Any:
            return model.optimizer.train_step(model, batch)

        def run(batch: Any, strategy: Any = strategy, step: Any = step) -> Any:
            return strategy.run(step, args=(batch,))

        run = tf.function(run, autograph=False) if in_function else run
        texts: list[str] = []
        for batch in strategy.experimental_distribute_dataset(dataset):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                logs = run(batch)
            texts += [str(w.message) for w in caught if "replicas" in str(w.message)]
        assert len(texts) == (0 if in_function else 1)  # once
        _together(model, strategy)
        parts = strategy.experimental_local_results(logs["loss"])
        assert float(parts[0]) == float(parts[1])
        results.append((model.get_weights(), model.get_metrics_result()))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float(results[0][1]["loss"]) == pytest.approx(
        float(results[1][1]["loss"]), rel=1e-5
    )


def test_an_eager_model() -> None:
    x, y = dense_data(8)  # the last batch leaves a replica without
    results = []
    for arguments in ({}, {"run_eagerly": True}):
        strategy = mirrored(2)
        with strategy.scope():
            model = keras_twin(dense_model)
            model.compile(SGDPlus(0.02, 0.9, order="given"), "mse", **arguments)
        model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
        _together(model, strategy)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loop_is_compiled_by_xla_on_each_replica() -> None:
    """One XLA computation per replica, and nothing falls back."""
    x, y = dense_data(14)
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(_compiled(dense_model))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(14)
    step = tf.function(
        lambda batch: strategy.run(
            lambda part: model.optimizer.train_step(model, part), args=(batch,)
        ),
        autograph=False,
    )
    batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
    graph = step.get_concrete_function(batch).graph
    compiled = [
        op.device
        for op in graph.get_operations()
        if "_XlaMustCompile" in op.node_def.attr and op.get_attr("_XlaMustCompile")
    ]
    assert sorted(name[-5:] for name in compiled) == ["CPU:0", "CPU:1"]


# What is not finite


def test_skip_on_replicas() -> None:
    x, y = dense_data(28)
    x[1], y[12] = np.nan, np.inf  # replica 0 of batch 0, replica 1 of batch 1
    strategy = mirrored(2)
    make = _compiled(dense_model, order="given", nonfinite="skip")
    with strategy.scope():
        model = keras_twin(make)
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match="left out 2 update"):
        history = model.fit(x, y, **fit).history
    assert history["skipped"] == [2]
    found = [
        (e.batch, e.replica, e.positions, e.iterations)
        for e in model.optimizer.skipped_examples()
    ]
    assert found == [(0, 0, (1,), 0), (1, 1, (1,), 7)]
    simulation = Simulation(lambda: keras_twin(make))
    simulation.train(shards(strategy, (x, y), 7))
    for ours, theirs in zip(state(model), state(simulation.model), strict=True):
        assert np.isfinite(ours.numpy()).all()
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["fit", "by hand"])
def test_raise_on_replicas_holds_the_batch(how: str) -> None:
    x, y = dense_data(28)
    y[12] = np.inf
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(_compiled(dense_model, order="given", nonfinite="raise"))
        twin = keras_twin(_compiled(dense_model, order="given"))
    place = r"position 1 of replica 1's part of batch 1"
    twin.fit(x[:7], y[:7], batch_size=7, shuffle=False, verbose=0)
    if how == "fit":
        with pytest.raises(FloatingPointError, match=place):
            model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
    else:
        run = tf.function(
            lambda batch: strategy.run(
                lambda part: model.optimizer.train_step(model, part), args=(batch,)
            ),
            autograph=False,
        )
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
        batches = iter(strategy.experimental_distribute_dataset(dataset))
        run(next(batches))
        with pytest.raises(tf.errors.OpError, match=place):
            run(next(batches))
    for ours, theirs in zip(state(model), state(twin), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), ours.path)
    _together(model, strategy)
    # And it can be trained on.
    model.fit(x[:7], y[:7], batch_size=7, shuffle=False, verbose=0)


# What is refused


@pytest.mark.parametrize(
    "plus, compile, text",
    [
        ({"gradient_accumulation_steps": 3}, {}, "Use examples_per_update=3"),
        ({}, {"jit_compile": True}, r"compile\(jit_compile=True\). Leave that out"),
        ({}, {"steps_per_execution": 4}, "steps_per_execution=4.*Leave"),
    ],
    ids=["accumulation", "jit_compile", "steps_per_execution"],
)
def test_refused(plus: dict[str, Any], compile: dict[str, Any], text: str) -> None:
    x, y = dense_data(14)
    with mirrored(2).scope():
        model = dense_model()
        model.compile(SGDPlus(**plus), "mse", **compile)
    before = model.get_weights()
    with pytest.raises(NotImplementedError, match=text):
        model.fit(x, y, batch_size=7, verbose=0)
    for ours, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, start)


def test_another_strategy_is_refused() -> None:
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"])
    text = "Received: CentralStorageStrategy"
    x, y = dense_data(14)
    with strategy.scope():
        with pytest.raises(NotImplementedError, match=text):
            SGDPlus()
        optimizer = SGDPlus(examples_per_update=None)
        with pytest.raises(NotImplementedError, match=text):
            optimizer.examples_per_update = 1
        assert optimizer.examples_per_update is None
        model = dense_model()
    model.compile(SGDPlus(), "mse")
    with pytest.raises(NotImplementedError, match=text):
        model.fit(x, y, batch_size=7, verbose=0)


def test_made_outside_the_scope() -> None:
    x, y = dense_data(14)
    with mirrored(2).scope():
        model = dense_model()
    model.compile(SGDPlus(), "mse")
    with pytest.raises(ValueError, match=r"inside strategy.scope\(\). Received: one"):
        model.fit(x, y, batch_size=7, verbose=0)


def test_called_by_no_replica() -> None:
    with mirrored(2).scope():
        model = _compiled(dense_model)()
        with pytest.raises(RuntimeError, match="Use strategy.run"):
            model.optimizer.train_step(model, dense_data(14))


def test_train_on_batch_is_refused() -> None:
    with mirrored(2).scope():
        model = _compiled(dense_model)()
    with pytest.raises(NotImplementedError, match="Use fit"):
        model.train_on_batch(*dense_data(14))


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


def test_none_with_parts_of_unequal_size() -> None:
    """In a process that has made no other SGDPlus."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", _ONLY_NONE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_simulated_mean_is_by_examples() -> None:
    np.testing.assert_allclose(mean([np.zeros(2), np.ones(2)], [3, 1]), 0.25)
