"""`nonfinite="skip"` trains as Keras does without the bad examples."""

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
    quiet_fit,
    root,
)
from tests.support.cases import inverse_time_schedule
from tests.support.compare import difference, snapshot
from tests.support.messages import normalises
from tests.support.tiers import matrix, tiered_keys
from tests.support.twins import dense_data
from tests.support.versions import TENSORFLOW

pytestmark = normalises


def _dropout() -> Any:
    layers = [keras.layers.Dense(6, "tanh"), keras.layers.Dropout(0.4)]
    return keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(2)])


def _convolution() -> Any:
    layers = [
        keras.layers.Reshape((5, 1)),
        keras.layers.Conv1D(3, 2),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((5,)), *layers])


def _leave_out(model: Any, x: Any, y: Any) -> None:
    """Keras, one example at a time; a bad one only advances the counters."""
    step = tf.function(model.train_step, jit_compile=True)
    forward = tf.function(lambda x: model(x, training=True), jit_compile=True)
    has_seeds = any(isinstance(v, keras.layers.Dropout) for v in model.layers)
    for i in range(NUM_EXAMPLES):
        if i not in BAD:
            step((tf.constant(x[i : i + 1]), tf.constant(y[i : i + 1])))
            continue
        model.optimizer._iterations.assign_add(1)
        if has_seeds:
            forward(tf.constant(x[i : i + 1]))


CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "plain": (dense, "loss", {}),
    "momentum": (dense, "loss", {"momentum": 0.9}),
    "nesterov_decay": (
        dense,
        "loss",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "clipnorm": (dense, "loss", {"clipnorm": 0.1}),
    "clipvalue": (dense, "loss", {"clipvalue": 0.01, "momentum": 0.5}),
    "schedule": (dense, "loss", {"learning_rate": inverse_time_schedule}),
    "gradient": (root, "gradient", {"momentum": 0.9}),
    "dropout": (_dropout, "loss", {"momentum": 0.9}),
    "batch_normalization": (_convolution, "loss", {"momentum": 0.9}),
}


DEFAULT = ("momentum",)


@pytest.mark.parametrize("jit_compile", ["auto", *matrix(False)])
@pytest.mark.parametrize("case", tiered_keys(CASES, *DEFAULT))
def test_skip_is_keras_without_them(
    case: str, jit_compile: Any, engagements: list[str]
) -> None:
    make, cause, sgd = CASES[case]
    if case == "dropout" and jit_compile is False:
        pytest.xfail("TensorFlow draws other numbers without XLA")
    x, y = data(cause)
    settings = {"learning_rate": 0.02, **sgd}
    if callable(settings["learning_rate"]):
        settings["learning_rate"] = settings["learning_rate"]()
    theirs = compiled(make, keras.optimizers.SGD(**settings))
    theirs.optimizer.build(theirs.trainable_variables)
    before = snapshot(theirs)
    _leave_out(theirs, x, y)
    plus = SGDPlus(**settings, order="given", nonfinite="skip", jit_compile=jit_compile)
    ours = compiled(make, plus)
    with pytest.warns(UserWarning, match=f"left out {len(BAD)} update"):
        history = ours.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    assert engagements and set(engagements) == {ours.name}
    assert difference(before, snapshot(ours), snapshot(theirs)).relative < ROUNDING
    assert int(plus._iterations) == NUM_EXAMPLES
    assert history["skipped"] == [len(BAD)]
    for name, value in theirs.get_metrics_result().items():
        np.testing.assert_allclose(history[name][0], value, rtol=1e-5, err_msg=name)
    found = plus.skipped_examples()
    assert [(e.batch, *e.positions) for e in found] == [divmod(i, 8) for i in BAD]
    assert {e.iterations for e in found} == {0, 8}
    path = ours.trainable_variables[0].path
    assert {e.cause for e in found} == {"loss" if cause == "loss" else path}


@pytest.mark.parametrize("jit_compile", ["auto", *matrix(False)])
def test_propagate_is_the_default_and_ruins(jit_compile: Any) -> None:
    x, y = data()
    model = compiled(dense, SGDPlus(0.02, jit_compile=jit_compile))
    with pytest.warns(UserWarning, match="The loss should be finite at the end of fit"):
        history = model.fit(x, y, verbose=0).history
    assert np.isnan(model.get_weights()[0]).all()
    assert "skipped" not in history and model.optimizer.skipped_examples() == []


@pytest.mark.matrix
def test_average_starts_at_the_first_applied_update() -> None:
    x, y = data()
    plus = SGDPlus(
        0.02, use_ema=True, ema_momentum=0.75, order="given", nonfinite="skip"
    )
    model = compiled(dense, plus)
    kernel = model.trainable_variables[0]
    average: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(NUM_EXAMPLES):  # each a batch: the average has to outlive it
            model.train_on_batch(x[i : i + 1], y[i : i + 1])
            weight = kernel.numpy().astype("float64")
            if i not in BAD:
                average = weight if average is None else 0.75 * average + 0.25 * weight
    held = plus._model_variables_moving_average[0]
    np.testing.assert_allclose(held, average, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [*matrix(1), 16])
def test_accumulation_leaves_out_what_is_bad(batch_size: int) -> None:
    """The step of a window leaves out bad examples; a bad window makes none."""
    x, y = dense_data(12, outputs=1)
    bad = [2, 6, 7, 8]  # the last of a window, and a whole one
    x[bad] = np.nan
    settings = {"learning_rate": 0.1, "momentum": 0.5, "order": "given"}
    plus = SGDPlus(**settings, gradient_accumulation_steps=3, nonfinite="skip")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(plus, "mse")
    w = model.get_weights()[0].astype("float64")
    quiet_fit(model, x, y, batch_size=batch_size)
    velocity = np.zeros_like(w)
    for window in np.split(np.arange(12), 4):
        good = [i for i in window if i not in bad]
        if not good:
            continue
        gradient = sum(2 * x[i : i + 1].T @ (x[i : i + 1] @ w - y[i]) for i in good)
        velocity = 0.5 * velocity - 0.1 * gradient / 3
        w = w + velocity
    np.testing.assert_allclose(model.get_weights()[0], w, rtol=2e-5, atol=1e-6)
    assert not np.any(plus._accumulated_gradients[0])


@pytest.mark.parametrize("batch_size", [8, *matrix(7)])
def test_groups_are_left_out_whole(batch_size: int) -> None:
    x, y = data()
    plus = SGDPlus(
        0.02, momentum=0.9, order="given", nonfinite="skip", examples_per_update=4
    )
    model = compiled(dense, plus)
    history = quiet_fit(model, x, y, batch_size=batch_size).history
    found = [(e.batch, e.positions) for e in plus.skipped_examples()]
    if batch_size == 8:
        expected = [(0, (0, 1, 2, 3)), (0, (4, 5, 6, 7)), (1, (4, 5, 6, 7))]
        groups = [(8, 9, 10, 11)]
    else:  # the second batch ends with 11, 12, 13
        expected = [(0, (0, 1, 2, 3)), (0, (4, 5, 6)), (1, (4, 5, 6))]
        groups = [(7, 8, 9, 10), (14, 15)]
    assert found == expected and history["skipped"] == [3]
    theirs = compiled(dense, keras.optimizers.SGD(0.02, momentum=0.9))
    for group in groups:
        theirs.train_on_batch(x[list(group)], y[list(group)])
    for our, their in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [*matrix(0.0), 0.9])
def test_rows_of_a_table_stay(momentum: float) -> None:
    """A loss that is not finite scatters its gradient into a table."""
    layers = [keras.layers.Embedding(20, 3), keras.layers.Flatten()]
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), *layers, keras.layers.Dense(1)]
    )
    plus = SGDPlus(0.1, momentum=momentum, order="given", nonfinite="skip")
    model.compile(plus, "mse")
    x = np.arange(12, dtype="int32").reshape(6, 2)
    y = np.array([1, np.nan, 1, 1, np.inf, 1], "float32")[:, None]
    before = model.layers[0].embeddings.numpy()
    quiet_fit(model, x, y)
    moved = np.flatnonzero(np.any(model.layers[0].embeddings != before, 1))
    np.testing.assert_array_equal(moved, [0, 1, 4, 5, 6, 7, 10, 11])


@pytest.mark.matrix
def test_later_orders_do_not_depend_on_what_was_skipped() -> None:
    x, y = data()
    clean, _ = dense_data(NUM_EXAMPLES)
    seen = []
    for first in (x, clean):
        model = compiled(dense, SGDPlus(0.0, nonfinite="skip", seed=5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train_on_batch(first, np.nan_to_num(y))
            model.train_on_batch(x, y)
        counters = {e.iterations: [] for e in model.optimizer.skipped_examples()}
        for entry in model.optimizer.skipped_examples():
            counters[entry.iterations].append(entry.positions)
        seen.append(counters[16])
    assert seen[0] == seen[1]


def _half(nonfinite: str, scale: float, x: Any, y: Any) -> tuple[Any, Any]:
    keras.utils.set_random_seed(1)
    policy = keras.DTypePolicy("mixed_float16")
    layers = [keras.layers.Dense(4, dtype=policy), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    # Compiled by XLA of TensorFlow 2.17, half precision does not overflow here.
    jit = "auto" if TENSORFLOW > (2, 17) else False
    settings = {"momentum": 0.9, "order": "given", "nonfinite": nonfinite}
    inner = SGDPlus(0.01, **settings, jit_compile=jit)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale)
    model.compile(outer, "mse", auto_scale_loss=False)
    quiet_fit(model, x, y)
    return model, inner


@pytest.mark.matrix
def test_loss_scaling_goes_on_as_in_keras() -> None:
    """Keras skips gradients too large for the scale; SGDPlus skips the others."""
    x, y = dense_data(20, outputs=1)
    plain, _ = _half("propagate", 2.0**17, x, y)
    model, inner = _half("skip", 2.0**17, x, y)
    assert float(plain.optimizer.dynamic_scale) < 2.0**17  # it did skip
    for ours, theirs in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(
        model.optimizer.variables, plain.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert inner.skipped_examples() == []


@pytest.mark.matrix
def test_a_bad_loss_leaves_the_loss_scale() -> None:
    x, y = dense_data(20, outputs=1)
    y[7] = np.nan
    model, inner = _half("skip", 1024.0, x, y)
    assert float(model.optimizer.dynamic_scale) == 1024.0
    assert [e.positions for e in inner.skipped_examples()] == [(7,)]
    assert int(inner._iterations) == 20
    plain, _ = _half("propagate", 1024.0, x, y)
    assert float(plain.optimizer.dynamic_scale) < 1024.0
