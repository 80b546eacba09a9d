"""`max_loss_fraction` in every kind of run: tables, blocks, replicas and others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExactResume, SGDPlus
from tests.rule.test_capped_step import OPTIONS, in_float64
from tests.support import tables
from tests.support.cases import FLOAT64
from tests.support.internals import blocks, lazy_tables, rule
from tests.support.oracle import Oracle
from tests.support.replicas import mirrored, shards, together, visit
from tests.support.tiers import matrix, tiered_keys
from tests.support.twins import (
    Interrupt,
    Interrupted,
    dense_data,
    dense_model,
    linear_model,
)

layers = keras.layers
CAP = {"learning_rate": 10.0, "order": "given", "max_loss_fraction": 0.25}


def _compiled(make: Any = linear_model, loss: Any = "mse", **plus: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(SGDPlus(**{**CAP, **plus}), loss)
    return model


def _fit(model: Any, **fit: Any) -> dict[str, list[float]]:
    x, y = dense_data()
    arguments = {"batch_size": 10, "shuffle": False, "verbose": 0, **fit}
    return model.fit(x, y, **arguments).history


# The same updates in another way, where every update can be written out by hand.


def by_hand(model: Any, batches: Any, **options: Any) -> int:
    """Trains by the formula, in TensorFlow's float64, eagerly; how many were capped.

    No loop of ours: a tape per example, every gradient dense.
    """
    phi, rate = options["max_loss_fraction"], options["learning_rate"]
    momentum, decay = options.get("momentum", 0.0), options.get("weight_decay") or 0.0
    nesterov, limit = options.get("nesterov", False), options.get("clipnorm")
    velocities = [np.zeros(v.shape) for v in model.trainable_variables]
    capped = 0
    for x, y in batches:
        with tf.GradientTape() as tape:
            losses = model.compute_loss(x, y, model(x, training=True))
        found = tape.gradient(losses, [v.value for v in model.trainable_variables])
        raw = [tf.convert_to_tensor(g).numpy() for g in found]
        grads = raw
        if limit:
            # Keras clips the rows of a table as they stand.
            norms = [
                np.linalg.norm(g.values if isinstance(g, tf.IndexedSlices) else g)
                for g in found
            ]
            pairs = zip(raw, norms, strict=True)
            grads = [g * min(1.0, limit / norm) for g, norm in pairs]
        product = sum((a * b).sum() for a, b in zip(raw, grads, strict=True))
        cap = phi * (1 - momentum) * float(losses) / product
        step, capped = min(rate, cap), capped + (cap < rate)
        for i, (v, g) in enumerate(zip(model.trainable_variables, grads, strict=True)):
            velocities[i] = momentum * velocities[i] - step * g
            change = velocities[i]
            if nesterov:
                change = momentum * change - step * g
            v.assign(v.numpy() * (1 - step * decay) + change)
    return int(capped)


ROWS: dict[str, dict[str, Any]] = {
    "plain": {"learning_rate": 0.25},
    "momentum": {"learning_rate": 0.0625, "momentum": 0.75},
    "nesterov_decay": {
        "learning_rate": 0.1875,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.0625,
    },
    "clipnorm_decay": {
        "learning_rate": 4.0,
        "momentum": 0.5,
        "weight_decay": 0.0625,
        "clipnorm": 0.0625,
    },
}


def _bag() -> Any:
    return tables.bag(embeddings_initializer=keras.initializers.RandomNormal(stddev=1))


def _steps_of(shown: type[Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each step of weights whose updates wait, as it is traced."""
    steps: list[int] = []
    step = shown.step

    def counted(self: Any, *arguments: Any) -> Any:
        steps.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(shown, "step", counted)
    return steps


@pytest.mark.matrix
@pytest.mark.parametrize("options", tiered_keys(ROWS))
def test_tables_in_parts(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also rows whose token comes twice, and decay at a rate that varies."""
    in_float64()
    shown = _steps_of(lazy_tables.ShownTables, monkeypatch)
    count = 60
    ids, labels = tables.ids(count), tables.labels(count)
    assert any(len(set(row)) < len(row) for row in ids.tolist())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plus = {"max_loss_fraction": 0.5, **ROWS[options]}
    ours, theirs = _compiled(_bag, loss, **plus), _compiled(_bag, loss)
    theirs.set_weights(ours.get_weights())
    history = ours.fit(ids, labels, batch_size=20, shuffle=False, verbose=0).history
    batches = [(ids[i : i + 1], labels[i : i + 1]) for i in range(count)]
    capped = by_hand(theirs, batches, **plus)
    assert count / 10 <= capped < count
    np.testing.assert_allclose(history["capped"], capped / count)
    assert bool(shown) == (options != "plain")
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.matrix
@pytest.mark.parametrize("options", tiered_keys(OPTIONS))
def test_blocks(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Dense kernel that waits in blocks, against the oracle."""
    in_float64()
    entered = _steps_of(blocks.ShownBlock, monkeypatch)
    chosen = {**OPTIONS[options], "examples_per_update": 1}
    x = np.random.default_rng(3).normal(size=(100, 300))
    y = np.sin(x[:, :2])
    rate = chosen["learning_rate"] / 16
    plus = {**chosen, "learning_rate": rate, "max_loss_fraction": 0.25}
    arguments = {k: v for k, v in plus.items() if k != "examples_per_update"}
    model = dense_model(300, 100)
    oracle = Oracle(model.get_weights(), **arguments)
    model.compile(SGDPlus(order="given", **plus), "mse")
    history = model.fit(x, y, batch_size=70, shuffle=False, verbose=0).history
    oracle.visit(x, y, range(len(x)))
    oracle.finish()
    waits = not (chosen.get("use_ema") or chosen.get("clipvalue"))
    assert bool(entered) == waits
    np.testing.assert_allclose(history["capped"], oracle.capped / len(x))
    for v, array in zip(model.trainable_variables, oracle.weights, strict=True):
        np.testing.assert_allclose(v.numpy(), array, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", tiered_keys(OPTIONS))
@pytest.mark.matrix
def test_replicas(options: str) -> None:
    in_float64()
    chosen = {**OPTIONS[options], "examples_per_update": 1, "max_loss_fraction": 0.25}
    x, y = (part.astype("float64") for part in dense_data(30))
    strategy = mirrored(2)
    with strategy.scope():
        model = dense_model()
        model.compile(SGDPlus(order="given", **chosen), "mse")
    del chosen["examples_per_update"]
    oracle = Oracle(model.get_weights(), **chosen)
    history = model.fit(x, y, batch_size=7, shuffle=False, verbose=0).history
    together(model, strategy)
    visit(oracle, shards(strategy, (x, y), 7))
    oracle.finish()
    np.testing.assert_allclose(history["capped"], oracle.capped / 30)
    for v, array in zip(model.trainable_variables, oracle.weights, strict=True):
        np.testing.assert_allclose(v.numpy(), array, rtol=FLOAT64, atol=1e-14)


@pytest.mark.matrix
def test_loss_scaling_changes_nothing() -> None:
    """The rule gets the loss and the gradients without their scale."""
    plain = _compiled()
    expected = _fit(plain)
    for scaled in ("fixed", "dynamic"):
        model = _compiled(**({"loss_scale_factor": 8.0} if scaled == "fixed" else {}))
        if scaled == "dynamic":
            inner = model.optimizer
            outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
            model.compile(outer, "mse")
        history = _fit(model)
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
        np.testing.assert_allclose(history["capped"], expected["capped"])
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", matrix("mixed_float16", "mixed_bfloat16"))
def test_half_precision_is_near_float32(policy: str) -> None:
    expected = _fit(_compiled(dense_model), epochs=5)
    keras.config.set_dtype_policy(policy)
    found = _fit(_compiled(dense_model), epochs=5)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0.05)


def test_several_outputs_and_losses_that_are_added() -> None:
    """The loss is the total, as reported; squared errors, so one step is known."""
    in_float64()
    inputs = keras.Input((5,))
    outputs = [layers.Dense(1, use_bias=False)(inputs) for _ in range(2)]
    model = keras.Model(inputs, outputs)
    plus = {**CAP, "max_loss_fraction": 1.0, "learning_rate": 1e6}
    model.compile(SGDPlus(**plus), ["mse", "mse"], loss_weights=[1.0, 1.0])
    x, y = (part.astype("float64") for part in dense_data(1))
    data = x, [y[:, :1], y[:, 1:]]
    before = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    model.train_on_batch(*data)
    after = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(after, before / 4, rtol=1e-12)


class _Added(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(3.0 * keras.ops.mean(x**2))
        return x


@pytest.mark.matrix
def test_added_losses_count() -> None:
    """An added loss loosens the cap: with 3 times the loss more, 4 times the step."""
    in_float64()
    x, y = (part.astype("float64") for part in dense_data(1, outputs=1))

    def step(added: bool) -> np.ndarray:
        stack = [layers.Dense(1, use_bias=False), *([_Added()] if added else [])]
        model = keras.Sequential([keras.Input((5,)), *stack])
        start = np.full((5, 1), 0.25)
        model.set_weights([start])
        model.compile(SGDPlus(**{**CAP, "learning_rate": 1e6}), "mse")
        model.train_on_batch(x, 0 * y)
        return model.get_weights()[0] - start

    # e**2 + 3 e**2: loss and gradient are 4 times as large, the norm's square 16 times.
    np.testing.assert_allclose(step(added=True), step(added=False), rtol=1e-12)
    assert np.abs(step(added=True)).max() > 0.001


@pytest.mark.matrix
@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_bad_examples_are_skipped_and_not_counted(jit_compile: Any) -> None:
    x, y = dense_data(20)
    good = [i for i in range(20) if i not in (4, 11)]
    bad_x = x.copy()
    bad_x[4, 0], bad_x[11, 1] = np.nan, np.inf
    ours = _compiled(dense_model, nonfinite="skip", jit_compile=jit_compile)
    theirs = _compiled(dense_model, jit_compile=jit_compile)
    fit = {"batch_size": 20, "shuffle": False, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ours.fit(bad_x, y, **fit).history
    expected = theirs.fit(x[good], y[good], **fit).history
    assert found["skipped"] == [2] and found["capped"] == expected["capped"]
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("jit_compile", ["auto", *matrix(False)])
def test_an_overflowing_norm_is_a_step_of_zero(jit_compile: Any) -> None:
    """It is no bad example: gradient and loss are finite, the norm's square is not."""
    x, y = dense_data(4)
    x[1] *= 1e12
    model = _compiled(nonfinite="raise", jit_compile=jit_compile)
    start = model.get_weights()
    logs = model.train_on_batch(x[1:2], y[1:2], return_dict=True)
    assert logs["capped"] == 1 and np.isfinite(logs["loss"])
    for a, b in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.train_on_batch(x[2:3], y[2:3])
    assert not np.array_equal(start[0], model.get_weights()[0])


# The share of capped updates in the logs.


@pytest.mark.matrix
def test_share_is_of_each_epoch_and_of_training_alone() -> None:
    x, y = dense_data()
    model = _compiled(learning_rate=0.03)
    shares: list[float] = []
    for _ in range(3):
        ran = _compiled(learning_rate=0.03)
        ran.set_weights(model.get_weights())
        shares += _fit(ran)["capped"]
        _fit(model)
    whole = _compiled(learning_rate=0.03)
    history = _fit(whole, epochs=3, validation_data=(x, y))
    np.testing.assert_allclose(history["capped"], shares, atol=1e-6)
    assert 0 < min(shares) and max(shares) < 1
    assert "val_capped" not in history
    assert "capped" not in whole.evaluate(x, y, return_dict=True, verbose=0)
    names = [v.path for v in whole.optimizer.variables]
    assert not any("capped" in name for name in names)


@pytest.mark.matrix
def test_share_with_steps_per_execution_and_by_batch() -> None:
    x, y = dense_data()
    expected = _fit(_compiled(learning_rate=0.03))["capped"]
    several = _compiled(learning_rate=0.03)
    several.compile(several.optimizer, "mse", steps_per_execution=3)
    assert _fit(several)["capped"] == expected
    single = _compiled(learning_rate=0.03)
    shares = []
    for i in range(0, 30, 10):
        rows = slice(i, i + 10)
        single.reset_metrics()  # Keras 3.13 does not in train_on_batch
        logs = single.train_on_batch(x[rows], y[rows], return_dict=True)
        shares.append(float(logs["capped"]))
    np.testing.assert_allclose(np.mean(shares), expected[0], rtol=1e-6)


def test_off_there_is_no_part_no_count_and_no_share() -> None:
    model = _compiled(max_loss_fraction=None, learning_rate=0.01)
    made = rule.Rule.of(model.optimizer, model.trainable_variables)
    assert not made.varies_rate
    assert list(_fit(model)) == ["loss"]


@pytest.mark.matrix
def test_assigned_without_a_new_trace(engagements: list[str]) -> None:
    model = _compiled(max_loss_fraction=1.0)
    _fit(model)
    traces = len(engagements)
    weights = model.get_weights()
    model.optimizer.max_loss_fraction = 0.125
    _fit(model)
    assert len(engagements) == traces
    twin = _compiled(max_loss_fraction=0.125)
    twin.set_weights(weights)
    _fit(twin)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.optimizer.max_loss_fraction = None  # from here on it is plain SGD
    model.optimizer.learning_rate = 0.01
    assert list(_fit(model)) == ["loss"]


@pytest.mark.matrix
def test_saved_in_configs(tmp_path: Path) -> None:
    model = _compiled(max_loss_fraction=0.5)
    config = model.optimizer.get_config()
    assert SGDPlus.from_config(config).max_loss_fraction == 0.5
    del config["max_loss_fraction"]  # as in older files
    assert SGDPlus.from_config(config).max_loss_fraction is None
    model.save(tmp_path / "model.keras")
    loaded: Any = keras.models.load_model(tmp_path / "model.keras")
    assert _fit(loaded) == _fit(model)


@pytest.mark.matrix
def test_resumed_in_mid_epoch(tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> tuple[Any, dict[str, Any]]:
        model = _compiled(learning_rate=0.01, momentum=0.5)
        callbacks = [ExactResume(tmp_path / str(len(callbacks)), 1), *callbacks]
        return model, _fit(model, callbacks=callbacks, epochs=2, batch_size=6)

    whole, expected = run([])
    with pytest.raises(Interrupted):
        run([Interrupt(1, 2)])
    resumed, history = run([keras.callbacks.Callback()])
    assert history["capped"] == expected["capped"][1:]
    assert 0 < expected["capped"][1] < 1
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Refusals and warnings.


BESIDE = {
    "accumulation": {"gradient_accumulation_steps": 4},
    "per_batch": {"examples_per_update": None},
}


@pytest.mark.parametrize("name", BESIDE)
def test_refused_beside(name: str) -> None:
    ((setting, value),) = BESIDE[name].items()
    found = f"must be made from .*Received: {setting}={value}, with max.*Use "
    with pytest.raises(NotImplementedError, match=found):
        SGDPlus(max_loss_fraction=1.0, **BESIDE[name])
    live = SGDPlus(**BESIDE[name])
    with pytest.raises(NotImplementedError, match=found):
        live.max_loss_fraction = 1.0
    assert live.max_loss_fraction is None
    later = _compiled()
    if name == "accumulation":  # which Keras lets pass
        later.optimizer.gradient_accumulation_steps = 4
        with pytest.raises(NotImplementedError, match=found):
            _fit(later)
    else:
        with pytest.raises(NotImplementedError, match=found):
            later.optimizer.examples_per_update = None


def shifted(y: Any, prediction: Any) -> Any:
    return keras.ops.mean((y - prediction) ** 2, axis=-1) - 100.0


@pytest.mark.matrix
def test_negative_loss_warns_once() -> None:
    model = _compiled(loss=shifted)
    start = model.get_weights()
    with pytest.warns(UserWarning, match="below zero.*loss='shifted'.*Add a con") as w:
        _fit(model, epochs=3)
    assert len([e for e in w if "below zero" in str(e.message)]) == 1
    for a, b in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
