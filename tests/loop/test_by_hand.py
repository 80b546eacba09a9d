"""SGDPlus that is used by hand is bit-equal to `keras.optimizers.SGD`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import OPTIONS
from tests.support.tiers import matrix, tiered_keys, tiered_rows
from tests.support.twins import dense_data, dense_model

SGD = keras.optimizers.SGD
UPDATES = 7  # more than two rounds of accumulation and of EMA overwrites


def make(cls: type, **options: Any) -> Any:
    return cls(**{"learning_rate": 0.1, "momentum": 0.9, **options})


def embedding_model() -> keras.Model:
    """A model whose gradient is sparse: `IndexedSlices` with an id that repeats."""
    embedding = keras.layers.Embedding(9, 3)
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            embedding,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


def data_for(model: Any) -> tuple[Any, Any]:
    if model.inputs[0].dtype != "int32":
        return dense_data(UPDATES)
    x = np.random.default_rng(5).integers(0, 4, (UPDATES, 4)).astype("int32")
    return x, np.sin(x[:, :2]).astype("float32")


Way = Callable[[Any, list[Any], list[Any]], None]


def _apply_gradients(optimizer: Any, gradients: list[Any], weights: list[Any]) -> None:
    optimizer.apply_gradients(zip(gradients, weights, strict=True))


def _apply(optimizer: Any, gradients: list[Any], weights: list[Any]) -> None:
    optimizer.apply(gradients, weights)


def _apply_built(optimizer: Any, gradients: list[Any], weights: list[Any]) -> None:
    optimizer.build(weights)
    optimizer.apply(gradients)


def _update_step(optimizer: Any, gradients: list[Any], weights: list[Any]) -> None:
    optimizer.build(weights)
    for gradient, weight in zip(gradients, weights, strict=True):
        optimizer.update_step(gradient, weight.value, optimizer.learning_rate)


WAYS = {
    "apply_gradients": _apply_gradients,
    "apply": _apply,
    "apply_built": _apply_built,
    "update_step": _update_step,
}


def loop_by_hand(
    optimizer: Any,
    make_model: Callable[[], Any],
    way: Way = _apply_gradients,
    in_graph: bool = False,
    finalize: bool = False,
) -> list[np.ndarray]:
    """Weights and optimizer state after a training loop with a GradientTape."""
    keras.utils.set_random_seed(1)
    model = make_model()
    x, y = data_for(model)

    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            loss = optimizer.scale_loss(loss)
        weights = model.trainable_variables
        way(optimizer, tape.gradient(loss, weights), weights)

    if in_graph:
        optimizer.build(model.trainable_variables)
        step = tf.function(step)
    before = [w.numpy() for w in model.trainable_variables]
    for i in range(UPDATES):
        step(tf.constant(x[i : i + 1]), tf.constant(y[i : i + 1]))
    if finalize:
        optimizer.finalize_variable_values(model.trainable_variables)
    after = [w.numpy() for w in model.trainable_variables]
    assert not np.array_equal(before[0], after[0])
    return after + [v.numpy() for v in optimizer.variables]


def assert_bit_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", tiered_rows(WAYS, "apply_gradients"))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_equals_sgd(options: dict[str, Any], way: Way, engagements: list[str]) -> None:
    ours = make(SGDPlus, **options)
    results = [
        loop_by_hand(optimizer, dense_model, way)
        for optimizer in (ours, make(SGD, **options))
    ]
    assert_bit_equal(*results)
    steps = options.get("gradient_accumulation_steps", 1)
    counted = 0 if way is _update_step else UPDATES // steps
    assert int(ours.iterations) == counted
    assert engagements == []


@pytest.mark.parametrize(
    "name", ["plain", *matrix("nesterov", "accumulation"), "everything"]
)
def test_equals_sgd_in_a_graph(name: str) -> None:
    results = [
        loop_by_hand(make(cls, **OPTIONS[name]), dense_model, in_graph=True)
        for cls in (SGDPlus, SGD)
    ]
    assert_bit_equal(*results)


@pytest.mark.parametrize(
    "name",
    tiered_keys(sorted(set(OPTIONS) - {"plain", "momentum"}), "nesterov", "everything"),
)
def test_every_option_does_something(name: str) -> None:
    # Otherwise the rows above would compare plain momentum with itself.
    option = loop_by_hand(make(SGDPlus, **OPTIONS[name]), dense_model)
    plain = loop_by_hand(make(SGDPlus), dense_model)
    same = [np.array_equal(a, b) for a, b in zip(option, plain, strict=False)]
    assert not all(same) or len(option) != len(plain)


@pytest.mark.parametrize(
    "options", [{}, *matrix({"use_ema": True})], ids=["plain", "ema"]
)
@pytest.mark.parametrize("momentum", [*matrix(0.0), 0.9])
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_sparse_gradients_equal_sgd(
    way: Way, momentum: float, options: dict[str, Any]
) -> None:
    kinds: list[type] = []

    def noting(optimizer: Any, gradients: list[Any], weights: list[Any]) -> None:
        kinds.append(type(gradients[0]))
        way(optimizer, gradients, weights)

    results = [
        loop_by_hand(make(cls, momentum=momentum, **options), embedding_model, noting)
        for cls in (SGDPlus, SGD)
    ]
    assert set(kinds) == {tf.IndexedSlices}
    assert_bit_equal(*results)


@pytest.mark.parametrize("how", ["var_names", "var_list"])
def test_exclude_from_weight_decay_equals_sgd(how: str) -> None:
    def build(cls: type, exclude: bool) -> list[np.ndarray]:
        optimizer = make(cls, weight_decay=0.5)

        def make_model() -> Any:
            model = dense_model()
            # Biases start at zero, which decay does not change: shift them.
            for weight in model.trainable_variables:
                weight.assign(weight + 0.5)
            if exclude and how == "var_names":
                optimizer.exclude_from_weight_decay(var_names=["bias"])
            elif exclude:
                weights = model.trainable_variables[1::2]
                optimizer.exclude_from_weight_decay(var_list=weights)
            return model

        return loop_by_hand(optimizer, make_model)

    ours = build(SGDPlus, exclude=True)
    assert_bit_equal(ours, build(SGD, exclude=True))
    assert not np.array_equal(ours[1], build(SGDPlus, exclude=False)[1])


@pytest.mark.parametrize("frequency", [None, 2])
def test_finalize_equals_sgd_and_is_silent(frequency: int | None) -> None:
    # Keras documents this call for custom loops under `use_ema`. A loop by hand makes
    # one update per batch, so SGDPlus does not warn.
    options = {**OPTIONS["ema"], "ema_overwrite_frequency": frequency}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [
            loop_by_hand(make(cls, **options), dense_model, finalize=True)
            for cls in (SGDPlus, SGD)
        ]
    assert_bit_equal(*results)
    assert [str(w.message) for w in caught] == []


@pytest.mark.parametrize("cls", [SGDPlus, SGD])
def test_finalize_writes_the_average(cls: type) -> None:
    optimizer = make(cls, **OPTIONS["ema"], **_quiet(cls))
    results = loop_by_hand(optimizer, dense_model, finalize=True)
    plain = loop_by_hand(
        make(cls, **OPTIONS["ema"], **_quiet(cls)), dense_model, finalize=False
    )
    assert not np.array_equal(results[0], plain[0])


def _quiet(cls: type) -> dict[str, Any]:
    return {"examples_per_update": None} if cls is SGDPlus else {}


@pytest.mark.parametrize("name", ["plain", *matrix("everything")])
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_none_in_fit_equals_sgd(
    name: str, run_eagerly: bool, engagements: list[str]
) -> None:
    x, y = dense_data(UPDATES * 4)
    runs = []
    for cls in (SGDPlus, SGD):
        keras.utils.set_random_seed(1)
        model = dense_model()
        optimizer = make(cls, **OPTIONS[name], **_quiet(cls))
        model.compile(optimizer, loss="mse", metrics=["mae"], run_eagerly=run_eagerly)
        logs = model.fit(x, y, batch_size=4, epochs=2, verbose=0).history
        state = [*model.trainable_variables, *optimizer.variables]
        runs.append(([v.numpy() for v in state], logs, int(optimizer.iterations)))
    (ours, our_logs, our_count), (theirs, their_logs, their_count) = runs
    assert_bit_equal(ours, theirs)
    assert our_logs == their_logs
    steps = OPTIONS[name].get("gradient_accumulation_steps", 1)
    assert our_count == their_count == 2 * UPDATES // steps
    assert engagements == []


def test_none_by_train_step_equals_sgd(engagements: list[str]) -> None:
    x, y = dense_data(8)
    runs = []
    for cls in (SGDPlus, SGD):
        keras.utils.set_random_seed(1)
        model = dense_model()
        optimizer = make(cls, **_quiet(cls))
        model.compile(optimizer, loss="mse")
        batch = (tf.constant(x), tf.constant(y))
        if cls is SGDPlus:
            optimizer.train_step(model, batch)
        else:
            model.train_step(batch)
        runs.append([v.numpy() for v in (*model.variables, *optimizer.variables)])
    assert_bit_equal(*runs)
    assert engagements == []
