"""Examples that are not finite: left out, named, or handed through as in Keras."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus, _nonfinite, _update
from tests.cases import inverse_time_schedule
from tests.support.compare import difference, snapshot
from tests.twins import dense_data, dense_model

BAD = (0, 4, 5, 13)  # the first one, two in a row, and one in the second batch
NUM_EXAMPLES = 16
ROUNDING = 1e-5  # of the largest change; one update is a tenth of it and more


class Root(keras.layers.Layer):
    """Finite at zero, where its gradient is not."""

    def call(self, x: Any) -> Any:
        return keras.ops.sqrt(keras.ops.abs(x))


def _dense() -> Any:
    return dense_model()


def _root() -> Any:
    layers = [keras.layers.Dense(2, use_bias=False), Root(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((5,)), *layers])


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


def _data(cause: str = "loss") -> tuple[Any, Any]:
    x, y = dense_data(NUM_EXAMPLES)
    if cause == "loss":
        x[0], y[4, 0], y[5, 1], y[13] = np.nan, -np.inf, np.nan, 3e38
    else:
        x[list(BAD)] = 0.0  # so that Root is at zero
    return x, y


def _leave_out(model: Any, x: Any, y: Any) -> None:
    """Keras, one example at a time; of the bad ones only the counters advance."""
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
    "plain": (_dense, "loss", {}),
    "momentum": (_dense, "loss", {"momentum": 0.9}),
    "nesterov_decay": (
        _dense,
        "loss",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "clipnorm": (_dense, "loss", {"clipnorm": 0.1}),
    "clipvalue": (_dense, "loss", {"clipvalue": 0.01, "momentum": 0.5}),
    "schedule": (_dense, "loss", {"learning_rate": inverse_time_schedule}),
    "gradient": (_root, "gradient", {"momentum": 0.9}),
    "dropout": (_dropout, "loss", {"momentum": 0.9}),
    "batch_normalization": (_convolution, "loss", {"momentum": 0.9}),
}


def _compiled(make: Callable[[], Any], optimizer: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def _quiet_fit(model: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(*args, shuffle=False, verbose=0, **kwargs)


@pytest.mark.parametrize("jit_compile", ["auto", False])
@pytest.mark.parametrize("case", CASES)
def test_skip_is_keras_without_them(
    case: str, jit_compile: Any, engagements: list[str]
) -> None:
    make, cause, sgd = CASES[case]
    if case == "dropout" and jit_compile is False:
        pytest.xfail("TensorFlow draws other numbers without XLA")
    x, y = _data(cause)
    settings = {"learning_rate": 0.02, **sgd}
    if callable(settings["learning_rate"]):
        settings["learning_rate"] = settings["learning_rate"]()
    theirs = _compiled(make, keras.optimizers.SGD(**settings))
    theirs.optimizer.build(theirs.trainable_variables)
    before = snapshot(theirs)
    _leave_out(theirs, x, y)
    plus = SGDPlus(**settings, order="given", nonfinite="skip", jit_compile=jit_compile)
    ours = _compiled(make, plus)
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


@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_propagate_is_the_default_and_ruins(jit_compile: Any) -> None:
    x, y = _data()
    model = _compiled(_dense, SGDPlus(0.02, jit_compile=jit_compile))
    history = model.fit(x, y, verbose=0).history
    assert np.isnan(model.get_weights()[0]).all()
    assert "skipped" not in history and model.optimizer.skipped_examples() == []


def test_average_starts_at_the_first_applied_update() -> None:
    x, y = _data()
    plus = SGDPlus(
        0.02, use_ema=True, ema_momentum=0.75, order="given", nonfinite="skip"
    )
    model = _compiled(_dense, plus)
    kernel = model.trainable_variables[0]
    average: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(NUM_EXAMPLES):  # a batch each: what is known has to last
            model.train_on_batch(x[i : i + 1], y[i : i + 1])
            weight = kernel.numpy().astype("float64")
            if i not in BAD:
                average = weight if average is None else 0.75 * average + 0.25 * weight
    held = plus._model_variables_moving_average[0]
    np.testing.assert_allclose(held, average, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_accumulation_leaves_out_what_is_bad(batch_size: int) -> None:
    """The step at the end of a window is made, without the bad; one of all bad not."""
    x, y = dense_data(12, outputs=1)
    bad = [2, 6, 7, 8]  # the last of a window, and a whole one
    x[bad] = np.nan
    settings = {"learning_rate": 0.1, "momentum": 0.5, "order": "given"}
    plus = SGDPlus(**settings, gradient_accumulation_steps=3, nonfinite="skip")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(plus, "mse")
    w = model.get_weights()[0].astype("float64")
    _quiet_fit(model, x, y, batch_size=batch_size)
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


@pytest.mark.parametrize("batch_size", [8, 7])
def test_groups_are_left_out_whole(batch_size: int) -> None:
    x, y = _data()
    plus = SGDPlus(
        0.02, momentum=0.9, order="given", nonfinite="skip", examples_per_update=4
    )
    model = _compiled(_dense, plus)
    history = _quiet_fit(model, x, y, batch_size=batch_size).history
    found = [(e.batch, e.positions) for e in plus.skipped_examples()]
    if batch_size == 8:
        expected = [(0, (0, 1, 2, 3)), (0, (4, 5, 6, 7)), (1, (4, 5, 6, 7))]
        groups = [(8, 9, 10, 11)]
    else:  # the second batch ends with 11, 12, 13
        expected = [(0, (0, 1, 2, 3)), (0, (4, 5, 6)), (1, (4, 5, 6))]
        groups = [(7, 8, 9, 10), (14, 15)]
    assert found == expected and history["skipped"] == [3]
    theirs = _compiled(_dense, keras.optimizers.SGD(0.02, momentum=0.9))
    for group in groups:
        theirs.train_on_batch(x[list(group)], y[list(group)])
    for our, their in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rows_of_a_table_stay(momentum: float) -> None:
    """A gradient that is scattered into a table, from a loss that is not finite."""
    layers = [keras.layers.Embedding(20, 3), keras.layers.Flatten()]
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), *layers, keras.layers.Dense(1)]
    )
    plus = SGDPlus(0.1, momentum=momentum, order="given", nonfinite="skip")
    model.compile(plus, "mse")
    x = np.arange(12, dtype="int32").reshape(6, 2)
    y = np.array([1, np.nan, 1, 1, np.inf, 1], "float32")[:, None]
    before = model.layers[0].embeddings.numpy()
    _quiet_fit(model, x, y)
    moved = np.flatnonzero(np.any(model.layers[0].embeddings != before, 1))
    np.testing.assert_array_equal(moved, [0, 1, 4, 5, 6, 7, 10, 11])


def test_positions_are_those_handed_over_in_any_order() -> None:
    x, y = _data()
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip", seed=5))
    _quiet_fit(model, x, y, batch_size=16)
    found = [e.positions for e in model.optimizer.skipped_examples()]
    assert sorted(found) == [(i,) for i in BAD] and found != sorted(found)


def test_later_orders_do_not_depend_on_what_was_skipped() -> None:
    x, y = _data()
    clean, _ = dense_data(NUM_EXAMPLES)
    seen = []
    for first in (x, clean):
        model = _compiled(_dense, SGDPlus(0.0, nonfinite="skip", seed=5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train_on_batch(first, np.nan_to_num(y))
            model.train_on_batch(x, y)
        counters = {e.iterations: [] for e in model.optimizer.skipped_examples()}
        for entry in model.optimizer.skipped_examples():
            counters[entry.iterations].append(entry.positions)
        seen.append(counters[16])
    assert seen[0] == seen[1]


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
    x, y = _data()
    clean, targets = dense_data(NUM_EXAMPLES)
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip"))
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


def test_more_than_are_remembered_are_counted() -> None:
    x = np.full((1_500, 5), np.nan, "float32")
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip"))
    before = model.get_weights()
    history = _quiet_fit(model, x, x[:, :2], batch_size=400).history
    assert history["skipped"] == [1_500] and history["loss"] == [0.0]
    found = model.optimizer.skipped_examples()
    assert len(found) == 1_000 and found[-1].batch == 2
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_counts_are_no_variables() -> None:
    x, y = _data()
    plain = _compiled(_dense, SGDPlus(0.02))
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip"))
    _quiet_fit(plain, x, y)
    _quiet_fit(model, x, y)
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


@pytest.mark.parametrize("k", [1, 2])
def test_own_logs_are_those_of_the_last_that_counted(k: int) -> None:
    x = np.array([[1], [2], [np.nan]], "float32")
    model = Logging()
    plus = SGDPlus(0.01, order="given", nonfinite="skip", examples_per_update=k)
    model.compile(plus, "mse")
    logs = model.train_on_batch(x, x, return_dict=True)
    assert logs["largest"] == 2.0 and logs["skipped"] == 1.0


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


@pytest.mark.parametrize("cause", ["loss", "gradient"])
@pytest.mark.parametrize("way", WAYS)
def test_raise_stops_before_it(way: str, cause: str, engagements: list[str]) -> None:
    settings, train = WAYS[way]
    x, y = _data(cause)
    clean, _ = dense_data(NUM_EXAMPLES)
    x[[0, 4]], y[4] = clean[[0, 4]], 0.0  # the first bad one is 5
    make = _dense if cause == "loss" else _root
    plus = SGDPlus(0.02, momentum=0.9, order="given", nonfinite="raise")
    model = _compiled(make, plus)
    model.compile(plus, "mse", **settings)
    name = "a loss that" if cause == "loss" else "a gradient of .*/kernel' that"
    error = FloatingPointError if way != "function" else tf.errors.OpError
    with pytest.raises(error, match=f"{name} is not finite at position 5 of batch 0"):
        train(model, x, y)
    assert engagements
    assert int(plus.iterations) == 5
    theirs = _compiled(make, keras.optimizers.SGD(0.02, momentum=0.9))
    before = snapshot(theirs)
    theirs.fit(x[:5], y[:5], batch_size=1, shuffle=False, verbose=0)
    ours = {k: v for k, v in snapshot(model).items() if "metric" not in k}
    assert difference(before, ours, snapshot(theirs)).relative < ROUNDING
    train(model, *dense_data(NUM_EXAMPLES))  # goes on, and nothing is left of it
    assert int(plus.iterations) == 5 + NUM_EXAMPLES


@pytest.mark.parametrize("k", [4, 3])
def test_raise_in_groups(k: int) -> None:
    x, y = dense_data(NUM_EXAMPLES)
    y[-1] = np.nan
    plus = SGDPlus(0.02, order="given", nonfinite="raise", examples_per_update=k)
    model = _compiled(_dense, plus)
    places = "12, 13, 14, 15" if k == 4 else "15"
    with pytest.raises(FloatingPointError, match=rf"positions? {places} of batch"):
        model.train_on_batch(x, y)
    assert int(plus.iterations) == 15 // k
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_fault_before_the_rest_leaves_the_rest() -> None:
    x, y = dense_data(7)
    x[0] = np.nan
    settings = {"order": "given", "nonfinite": "raise", "examples_per_update": 4}
    model = _compiled(_dense, SGDPlus(0.02, **settings))
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match="positions 0, 1, 2, 3 of batch 0"):
        model.train_on_batch(x, y)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_raise_names_the_batch_of_the_epoch() -> None:
    x, y = dense_data(24)
    y[19] = np.inf
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="raise"))
    model.fit(x, np.nan_to_num(y, posinf=0), batch_size=8, verbose=0)
    match = "position 3 of batch 2 of the epoch, which began after 40 updates"
    with pytest.raises(FloatingPointError, match=match):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)


def _half(nonfinite: str, scale: float, x: Any, y: Any) -> tuple[Any, Any]:
    keras.utils.set_random_seed(1)
    policy = keras.DTypePolicy("mixed_float16")
    layers = [keras.layers.Dense(4, dtype=policy), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    inner = SGDPlus(0.01, momentum=0.9, order="given", nonfinite=nonfinite)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale)
    model.compile(outer, "mse", auto_scale_loss=False)
    _quiet_fit(model, x, y)
    return model, inner


def test_loss_scaling_goes_on_as_in_keras() -> None:
    """Gradients too large for the scale are Keras's to skip; the others are ours."""
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


def test_a_bad_loss_leaves_the_loss_scale() -> None:
    x, y = dense_data(20, outputs=1)
    y[7] = np.nan
    model, inner = _half("skip", 1024.0, x, y)
    assert float(model.optimizer.dynamic_scale) == 1024.0
    assert [e.positions for e in inner.skipped_examples()] == [(7,)]
    assert int(inner._iterations) == 20
    plain, _ = _half("propagate", 1024.0, x, y)
    assert float(plain.optimizer.dynamic_scale) < 1024.0


SPECIAL = [0.0, 1.0, -3e38, 1e-45, np.nan, np.inf, -np.inf, 1e20, -1e-20]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_outer_products_are_judged_by_their_factors(
    transposed: bool, jit_compile: bool
) -> None:
    """Against NumPy's look at every entry of the product."""

    @tf.function(jit_compile=jit_compile)
    def judged(a: Any, b: Any) -> tuple[Any, Any]:
        product = tf.matmul(a, b, transpose_a=True) if transposed else tf.matmul(a, b)
        assert _nonfinite._outer(product) is not None
        return _nonfinite.all_finite(product), product

    verdicts = set()
    for one, other in itertools.product(SPECIAL, SPECIAL):
        a = np.array([[2.0, one, -0.5]], "float32")
        b = np.array([[other, 1.5]], "float32")
        found, _ = judged(a if transposed else a.T, b)
        with np.errstate(all="ignore"):
            expected = bool(np.isfinite(a.T * b).all())
        assert bool(found) == expected, (one, other)
        verdicts.add(expected)
    assert verdicts == {True, False}


def test_kernel_gradients_are_judged_by_their_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients of a Dense model are recognised; else an update costs twice."""
    found = []
    outer = _nonfinite._outer

    def noted(tensor: Any) -> Any:
        factors = outer(tensor)
        found.append((tensor.shape.rank, factors is not None))
        return factors

    monkeypatch.setattr(_nonfinite, "_outer", noted)
    x, y = dense_data(8)
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip"))
    model.fit(x, y, verbose=0)
    assert {is_outer for rank, is_outer in found if rank == 2} == {True}
    assert {is_outer for rank, is_outer in found if rank == 1} == {False}


def test_what_was_skipped_before_is_not_raised_later() -> None:
    x, y = _data()
    model = _compiled(_dense, SGDPlus(0.02, nonfinite="skip"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train_on_batch(x, y)
    model.optimizer.nonfinite = "raise"
    clean = dense_data(NUM_EXAMPLES)
    model.train_on_batch(*clean)
    assert int(model.optimizer.iterations) == 2 * NUM_EXAMPLES
    with pytest.raises(FloatingPointError, match="of batch 0"):
        model.train_on_batch(x, y)
    model.optimizer.nonfinite = "skip"
    model.train_on_batch(*clean)
    assert len(model.optimizer.skipped_examples()) == len(BAD)


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_held_update_only_counts(is_held: bool, steps: int | None) -> None:
    """The rule with everything on; the second variable is one that is overwritten."""
    rule = _update.Rule(
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
        clipnorm=None,
        clipvalue=0.5,
        global_clipnorm=None,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=1,
        loss_scale_factor=2.0,
        accumulation_steps=steps,
        decays=(True, False),
        overwrites=(False, True),
        constraints=(keras.constraints.MaxNorm(0.1), None),
    )

    def tensors(value: float) -> list[Any]:
        return [tf.fill((2,), value), tf.fill((2,), value)]

    sums = tensors(0.25) if steps else [None, None]
    counter = tf.constant(3, tf.int64)
    state = _update.State(
        tensors(1.0), [tf.fill((2,), 0.5), None], tensors(2.0), sums, counter
    )
    rates = [tf.constant(0.1)] * 2
    new = _update.apply_gradients(
        rule, state, tensors(7.0), rates, tf.constant(is_held), tf.constant(True)
    )
    assert int(new.iterations) == 4
    for name in ("weights", "velocities", "averages", "accumulators"):
        pairs = zip(getattr(new, name), getattr(state, name), strict=True)
        for after, before in pairs:
            if before is not None:
                assert np.array_equal(after, before) == is_held, name
