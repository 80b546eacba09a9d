"""Replicas in use: logs, saved models, loops by hand, eager models, XLA."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.replicas import (
    compiled,
    keras_twin,
    mirrored,
    state,
    together,
)
from tests.support.twins import dense_data, dense_model

layers = keras.layers


@pytest.mark.matrix
def test_logs_of_each_batch_are_of_all_replicas() -> None:
    x, y = dense_data(29)
    seen: list[dict[str, float]] = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs)
    )
    strategy = mirrored(2)
    make = compiled(dense_model, learning_rate=0.0, momentum=0.0, jit_compile=False)
    with strategy.scope():
        model = keras_twin(make)
    expected = dict(zip(("loss", "mae"), model.evaluate(x, y, verbose=0), strict=True))
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[note], **fit).history
    for name, value in expected.items():
        # The last batch has one example. A mean over replicas would count it as much
        # as the 28 before it.
        assert seen[-1][name] == pytest.approx(value, rel=1e-5)
        assert history[name] == pytest.approx([value], rel=1e-5)


@pytest.mark.matrix
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
        model.compile(SGDPlus(0.01, order="given", jit_compile=False), "mse")
    logs = model.fit(y, y, batch_size=5, shuffle=False, verbose=0).history
    assert logs["last"] == pytest.approx([(3 * 3 + 2 * 5) / 5])


@pytest.mark.parametrize(
    "first, second, kind",
    [
        pytest.param(2, 1, "model.keras", marks=pytest.mark.matrix),
        pytest.param(1, 2, "model.keras", marks=pytest.mark.matrix),
        pytest.param(2, 1, "model.weights.h5", marks=pytest.mark.matrix),
    ],
)
def test_saved_under_a_strategy_and_loaded_without(
    first: int, second: int, kind: str, tmp_path: Any
) -> None:
    """Training goes on where it was, on another number of replicas."""
    x, y = dense_data(28)
    make = compiled(dense_model, order="given")
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
        together(loaded, mirrored(second))


def _scope(num_replicas: int) -> Any:
    several = num_replicas > 1
    return mirrored(num_replicas).scope() if several else contextlib.nullcontext()


@pytest.mark.matrix
@pytest.mark.parametrize("in_function", [True, False], ids=["tf.function", "eager"])
def test_by_hand(in_function: bool) -> None:
    """`strategy.run` of `optimizer.train_step` trains as `fit` does."""
    x, y = dense_data(8)
    make = compiled(dense_model, order="given")
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
        together(model, strategy)
        parts = strategy.experimental_local_results(logs["loss"])
        assert float(parts[0]) == float(parts[1])
        results.append((model.get_weights(), model.get_metrics_result()))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float(results[0][1]["loss"]) == pytest.approx(
        float(results[1][1]["loss"]), rel=1e-5
    )


@pytest.mark.matrix
def test_an_eager_model() -> None:
    x, y = dense_data(8)  # the last batch leaves a replica without examples
    results = []
    for arguments in ({}, {"run_eagerly": True}):
        strategy = mirrored(2)
        with strategy.scope():
            model = keras_twin(dense_model)
            model.compile(SGDPlus(0.02, 0.9, order="given"), "mse", **arguments)
        model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
        together(model, strategy)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loop_is_compiled_by_xla_on_each_replica() -> None:
    """One XLA computation per replica, and nothing falls back."""
    x, y = dense_data(14)
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(compiled(dense_model))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(14)
    step = tf.function(
        lambda batch: strategy.run(
            lambda part: model.optimizer.train_step(model, part), args=(batch,)
        ),
        autograph=False,
    )
    batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
    graph = step.get_concrete_function(batch).graph
    devices = [
        op.device
        for op in graph.get_operations()
        if "_XlaMustCompile" in op.node_def.attr and op.get_attr("_XlaMustCompile")
    ]
    assert sorted(name[-5:] for name in devices) == ["CPU:0", "CPU:1"]
