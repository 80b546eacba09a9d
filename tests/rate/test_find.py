"""find_learning_rate: what it finds, and that everything else is as it was."""

from __future__ import annotations

import functools
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import (
    FoundLearningRate,
    LinearDecay,
    SeededArrays,
    SGDPlus,
    find_learning_rate,
)
from tests.support.internals import keras_optimizer, running_sums, search
from tests.support.tiers import matrix, tiered_keys

EXAMPLES, BATCH = 600, 200
LINE = (1e-3, 0.1)  # candidates at 0.001, 0.0032, 0.01, 0.032 and 0.1


@functools.cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(EXAMPLES, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 3))).argmax(axis=1).astype("int32")
    order = np.argsort(y, kind="stable")  # sorted by class
    return x[order], y[order]


def _model(optimizer: Any = None, *inner: Any, **options: Any) -> Any:
    """A model with statistics, seeds, metrics and slots; not built."""
    keras.utils.set_random_seed(1)
    parts = inner or (layers.Dense(8, "tanh"), layers.Dropout(0.2))
    model = keras.Sequential([*parts, layers.Dense(3)])
    model.compile(
        optimizer or SGDPlus(0.05, momentum=0.5, seed=4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


@functools.cache
def _shared() -> Any:
    """One model for all tests that do not train it: each search puts it back."""
    return _model(SGDPlus(seed=4), layers.Dense(8, "tanh"))


def _find(model: Any, *data: Any, **options: Any) -> FoundLearningRate:
    given = {"batch_size": BATCH, "lowest": LINE[0], "highest": LINE[1], "verbose": 0}
    return find_learning_rate(model, *(data or _data()), **{**given, **options})


def _state(model: Any) -> dict[str, Any]:
    """All states that a search may touch, as arrays and tuples."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    variables = [*model.variables, *model.metrics_variables]
    variables += [*optimizer.variables, *inner.variables]
    variables += running_sums.carried(inner)
    shared = keras_optimizer.global_seed_state()
    numpy_state: Any = np.random.get_state()
    return {
        "variables": [np.array(v) for v in variables],
        "shared seed": None if shared is None else np.array(shared),
        "random": random.getstate(),
        "numpy": [np.array(part) for part in numpy_state],
        "stops": model.stop_training,
        "skipped": inner.skipped_examples(),
    }


def _assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        if isinstance(value, list):
            for a, b in zip(value, after[name], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_equal(after[name], value, err_msg=name)


def _trained(model: Any) -> Any:
    """Trained a little, so that no state is zero."""
    x, y = _data()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
    keras.random.normal((2,))  # makes the seed that `keras.random` shares
    model.stop_training = True
    return model


SETTINGS: dict[str, Any] = {
    "plain": lambda: SGDPlus(0.05, seed=4),
    "momentum": lambda: SGDPlus(0.05, momentum=0.9, seed=4),
    "groups": lambda: SGDPlus(0.05, examples_per_update=8, seed=4),
    "averages": lambda: SGDPlus(0.05, use_ema=True, ema_overwrite_frequency=7, seed=4),
    "capped": lambda: SGDPlus(0.05, max_loss_fraction=1.0, seed=4),
    "skip": lambda: SGDPlus(0.05, nonfinite="skip", seed=4),
    "raise": lambda: SGDPlus(0.05, nonfinite="raise", seed=4),
    "clipped": lambda: SGDPlus(0.05, clipnorm=1.0, weight_decay=0.01, seed=4),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(SGDPlus(0.05, seed=4)),
}


@pytest.mark.parametrize("name", tiered_keys(SETTINGS, "momentum"))
def test_everything_is_put_back(name: str, engagements: list[str]) -> None:
    model = _trained(_model(SETTINGS[name]()))
    before, traces = _state(model), len(engagements)
    found = _find(model, set_rate=False)
    _assert_same(before, _state(model))
    assert len(engagements) == traces  # `fit` and the search share one trace
    assert found.learning_rate in found.rates
    assert np.isfinite(found.losses).any()


def _losses(model: Any, optimizer: Any, rate: float) -> np.ndarray:
    """The losses before each update, of Keras at batch_size=1, in the drawn order."""
    x, y = _data()
    rows = np.random.default_rng(4).permutation(EXAMPLES)
    twin = keras.models.clone_model(model)
    twin.build((None, 6))
    twin.set_weights(model.get_weights())
    twin.compile(optimizer(rate), model.loss)
    losses = []
    for i in rows:
        twin.reset_metrics()  # Keras gives the mean since then
        logs = twin.train_on_batch(x[[i]], y[[i]], return_dict=True)
        losses.append(logs["loss"])
    return np.array(losses)


@pytest.mark.parametrize("momentum", [0.9, *matrix(0.0)])
def test_losses_are_those_of_keras_before_each_update(momentum: float) -> None:
    optimizer = SGDPlus(momentum=momentum, order="given", seed=4)
    model = _model(optimizer, layers.Dense(8, "tanh"))
    model.build((None, 6))
    found = _find(model)
    sgd = functools.partial(keras.optimizers.SGD, momentum=momentum)
    for i in (0, 1, 2):  # rounding grows with higher rates
        losses = _losses(model, sgd, float(found.rates[i]))
        expected = np.mean([part.mean() for part in _windows(losses)])
        np.testing.assert_allclose(found.losses[i], expected, rtol=1e-4)


def _windows(losses: np.ndarray) -> list[np.ndarray]:
    """8 windows of equal length."""
    places = (np.arange(len(losses)) * (8 / len(losses))).astype(int)
    return [losses[places == w] for w in range(8)]


@pytest.mark.matrix
def test_the_lowest_loss_is_found_and_set() -> None:
    model = _model(SGDPlus(1e-3, seed=4))
    found = _find(model)
    assert found.learning_rate == found.rates[np.nanargmin(found.losses)]
    rate = model.optimizer.learning_rate.numpy()
    assert rate == np.float32(found.learning_rate) != np.float32(1e-3)
    assert found.constant_learning_rate < found.learning_rate
    assert (found.num_examples == EXAMPLES).all() and found.seconds > 0


@pytest.mark.matrix
def test_the_same_each_time() -> None:
    first, second = _find(_shared()), _find(_shared())
    np.testing.assert_array_equal(first.losses, second.losses)
    other = _find(_shared(), seed=5, num_examples=BATCH)
    assert (other.losses != second.losses).any()


@pytest.mark.matrix
def test_examples_are_drawn_at_random_unless_asked_for_in_order() -> None:
    """y is sorted by class: the first hundred examples are of one class."""
    drawn = _find(_shared(), num_examples=BATCH)
    given = _find(_shared(), num_examples=BATCH, order="given")
    assert np.nanmin(given.losses) < 0.3 < np.nanmin(drawn.losses)


@pytest.mark.matrix
@pytest.mark.parametrize("edge", ["above", "below"])
def test_it_goes_on_beyond_the_range(edge: str) -> None:
    x, y = _data()
    lowest, highest = (1e-5, 1e-4) if edge == "above" else (10.0, 100.0)
    found = _find(_shared(), x, y, lowest=lowest, highest=highest)
    place = int(np.nanargmin(found.losses))
    assert 0 < place < len(found.rates) - 1
    assert found.learning_rate == found.rates[place]
    assert place >= 3 and (np.isnan(found.losses[-1]) or place < len(found.rates) - 3)
    if edge == "above":
        assert found.rates[0] < 1.1e-5 and found.learning_rate > 1e-4
    else:
        assert found.rates[-1] == 100 and found.learning_rate < 10


@pytest.mark.matrix
def test_a_rate_that_is_best_among_dead_ones_is_no_answer() -> None:
    """With targets of thousands every rate of the usual range kills the network."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2_000, 6)).astype("float32")
    y = (10_000 + 5_000 * np.sin(4 * x[:, :1]) + 3_000 * x[:, 1:2]).astype("float32")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Dense(32, "relu"), layers.Dense(1)])
    model.compile(SGDPlus(seed=4), "mse")
    found = find_learning_rate(model, x, y, verbose=0)
    assert found.learning_rate < 3e-5
    model.fit(x, y, 1000, epochs=20, verbose=0, callbacks=[LinearDecay()])
    assert model.evaluate(x, y, verbose=0) < 0.2 * y.var()


@pytest.mark.matrix
def test_an_unbuilt_model_has_the_weights_that_fit_gives() -> None:
    x, y = _data()
    weights = []
    for searches in (True, False):
        model = _model(SGDPlus(0.01, seed=4))
        if searches:
            found = _find(model)
            assert found.learning_rate and model.built
        model.optimizer.learning_rate = 0.02
        model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def _three_inputs() -> tuple[Any, Any, Any]:
    x, y = _data()
    ids = np.arange(EXAMPLES, dtype="int32")[:, None] % 5
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    c = keras.Input((1,), dtype="int32", name="c")
    flat = layers.Flatten()(layers.Embedding(5, 2)(c))
    output = layers.Dense(3)(layers.Concatenate()([a, b, flat]))
    model = keras.Model({"a": a, "b": b, "c": c}, output)
    return model, {"a": x[:, :4], "b": x[:, 4:], "c": ids}, y


@pytest.mark.matrix
def test_three_inputs_with_weights() -> None:
    keras.utils.set_random_seed(1)
    model, x, y = _three_inputs()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(seed=4), loss)
    before = model.get_weights()
    plain = _find(model, x, y)
    weights = np.where(y == 0, 2.0, 1.0)
    by_example = _find(model, x, y, sample_weight=weights)
    by_class = _find(model, x, y, class_weight={0: 2.0, 1: 1.0, 2: 1.0})
    np.testing.assert_allclose(by_example.losses, by_class.losses, rtol=1e-6)
    assert (by_example.losses[:5] > plain.losses[:5] * 1.01).all()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(_data()).batch(BATCH)


@pytest.mark.parametrize(
    "make",
    [
        _dataset,
        pytest.param(
            lambda: SeededArrays(*_data(), batch_size=BATCH, seed=3),
            marks=pytest.mark.matrix,
        ),
    ],
    ids=["dataset", "PyDataset"],
)
def test_data_sets(make: Callable[[], Any], engagements: list[str]) -> None:
    data = make()
    model = _model(SGDPlus(seed=4))
    before = None if isinstance(data, tf.data.Dataset) else data.next_epoch
    found = _find(model, data)
    assert np.isfinite(found.losses).all()
    model.fit(data, epochs=1, verbose=0, shuffle=False, callbacks=[LinearDecay()])
    assert len(engagements) == 1
    if before is not None:
        assert data.next_epoch == before + 1
    if isinstance(data, tf.data.Dataset):  # in the order in which it comes
        arrays = _find(_model(SGDPlus(seed=4)), order="given")
        np.testing.assert_array_equal(found.losses, arrays.losses)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 3}, {"jit_compile": True}], ids=str
)
def test_ways_to_compile_change_nothing(options: dict[str, Any]) -> None:
    plain = _find(_model(SGDPlus(seed=4)))
    found = _find(_model(SGDPlus(seed=4), **options))
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-5)


class _Doubled(keras.Sequential):
    """Trains on each batch twice over."""

    def train_step(self, data: Any) -> Any:
        doubled = tf.nest.map_structure(lambda part: tf.concat([part] * 2, 0), data)
        return self.optimizer.train_step(self, doubled)


@pytest.mark.matrix
def test_a_train_step_that_changes_the_batch() -> None:
    x, y = _data()
    x, y = x[::-1], y[::-1]

    def found(cls: type, data: Any, num_examples: int) -> FoundLearningRate:
        keras.utils.set_random_seed(1)
        model = cls([keras.Input((6,)), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGDPlus(order="given", seed=4), loss)
        return _find(model, data, num_examples=num_examples)

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(100)
    twice = batches.map(lambda *b: tuple(tf.concat([part] * 2, 0) for part in b))
    theirs = found(keras.Sequential, twice, 800)
    ours = found(_Doubled, batches, 400)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)


@pytest.mark.matrix
def test_a_batch_without_examples_at_the_end() -> None:
    x, y = _data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    empty = tf.data.Dataset.from_tensors((x[:0], y[:0]))
    model = _model(SGDPlus(seed=4), layers.Dense(8, "tanh"))
    found = _find(model, batches.concatenate(empty))
    np.testing.assert_array_equal(found.losses, _find(model, batches).losses)


@pytest.mark.matrix
def test_one_window_is_never_sure() -> None:
    """Groups of 3 do not divide a batch of 400, which is therefore not cut."""
    x, y = _data()
    model = _model(SGDPlus(examples_per_update=3, seed=4), layers.Dense(8, "tanh"))
    found = _find(model, x[:400], y[:400], batch_size=400)
    assert not found.is_sure
    assert np.isnan(found.standard_errors).all()


@pytest.mark.matrix
def test_an_eager_model() -> None:
    losses = []
    for eager in (False, True):
        keras.utils.set_random_seed(1)  # layers are made before `_model` does so
        inner = layers.Dense(8, "tanh")
        model = _model(SGDPlus(seed=4), inner, run_eagerly=eager)
        losses.append(_find(model, num_examples=BATCH, lowest=0.01).losses[:3])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.matrix
def test_pandas_and_a_data_set_without_end() -> None:
    pandas = pytest.importorskip("pandas")
    plain = _find(_model(SGDPlus(seed=4)))
    x, y = _data()
    frames = pandas.DataFrame(x), pandas.Series(y)
    np.testing.assert_allclose(
        _find(_model(SGDPlus(seed=4)), *frames).losses, plain.losses, 1e-6
    )
    found = _find(_model(SGDPlus(seed=4)), _dataset().repeat(), num_examples=EXAMPLES)
    assert (found.num_examples == EXAMPLES).all()


@pytest.mark.matrix
def test_a_shuffled_data_set_is_the_same_for_all_candidates() -> None:
    data = tf.data.Dataset.from_tensor_slices(_data()).shuffle(EXAMPLES).batch(BATCH)
    found = _find(_shared(), data)
    # With the same examples, the losses of one rate and the next are close.
    assert (found.num_examples == EXAMPLES).all()
    again = _find(_shared(), data)
    assert (found.losses != again.losses).any()  # it was read anew


@pytest.mark.matrix
def test_half_precision_with_loss_scaling() -> None:
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model = _model(SGDPlus(seed=4))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    found = _find(model)
    assert np.isfinite(found.losses).all()
    rate = model.optimizer.inner_optimizer.learning_rate.numpy()
    assert rate == np.float32(found.learning_rate)


@pytest.mark.matrix
def test_what_is_not_finite_is_left_out() -> None:
    model = _model(SGDPlus(seed=4), layers.Dense(8, "relu"))
    x, _ = _data()
    model.compile(SGDPlus(seed=4), "mse")
    y = (x @ np.ones((6, 3))).astype("float32") * 100
    found = _find(model, x, y, lowest=1e-3, highest=10.0)
    assert np.isnan(found.losses).any()
    assert np.isfinite(found.losses[found.rates == found.learning_rate]).all()


@pytest.mark.matrix
@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "skip"])
def test_no_rate_is_an_error_that_costs_nothing(nonfinite: Any) -> None:
    x, y = _data()
    model = _model(SGDPlus(0.05, nonfinite=nonfinite, seed=4), layers.Dense(8, "tanh"))
    model.build((None, 6))
    before = model.get_weights()
    with pytest.raises(ValueError, match="Some learning rate must give losses"):
        _find(model, np.full_like(x, np.nan), y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer.skipped_examples() == []


@pytest.mark.matrix
def test_skipped_updates_are_no_losses() -> None:
    """A rate with which some updates are skipped is not compared by the others."""
    x, y = _data()
    model = _model(SGDPlus(nonfinite="skip", seed=4), layers.Dense(8, "relu"))
    model.compile(SGDPlus(nonfinite="skip", seed=4), "mse")
    y = (x @ np.ones((6, 3))).astype("float32") * 100
    found = _find(model, x, y, lowest=1e-3, highest=10.0)
    assert np.isnan(found.losses[-1])


def test_an_interrupt_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _trained(_model())
    before = _state(model)
    run, calls = search._Trainer.run, []

    def interrupted(self: Any, *args: Any) -> Any:
        trial = run(self, *args)
        calls.append(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trial

    monkeypatch.setattr(search._Trainer, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _find(model)
    _assert_same(before, _state(model))


@pytest.mark.matrix
def test_a_variable_that_nobody_tracks_is_put_back() -> None:
    hidden = keras.Variable(0.0, trainable=False)

    def loss(y: Any, y_pred: Any) -> Any:
        hidden.assign(hidden + 1.0)
        return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    model = _model(SGDPlus(seed=4))
    model.compile(SGDPlus(seed=4), loss)
    _find(model)
    assert float(hidden.numpy()) == 0.0


@pytest.mark.matrix
def test_it_looks_longer_where_rates_are_alike() -> None:
    """Every rate loses nothing on zeros."""
    x = np.zeros((400, 6), "float32")
    model = _model(SGDPlus(seed=4), layers.Dense(8, "tanh", use_bias=False))
    model.compile(SGDPlus(seed=4), "mse")
    found = _find(model, x, np.zeros((400, 3)), num_examples=100)
    assert (found.losses == 0).all()
    assert (found.num_examples == 400).all()  # all that there are
    assert not found.is_sure and "Not sure" in str(found)
    assert found.learning_rate == found.rates.max()  # none does harm


@pytest.mark.matrix
def test_it_ends_after_60_000_visits_where_rates_stay_alike() -> None:
    data = tf.data.Dataset.from_tensors((np.zeros((1_000, 6)), np.zeros((1_000, 3))))
    model = _model(SGDPlus(seed=4), layers.Dense(8, "tanh", use_bias=False))
    model.compile(SGDPlus(seed=4), "mse")
    found = _find(model, data.repeat())
    visits = int(found.num_examples.sum())
    assert 30_000 < visits <= 60_000
    assert not found.is_sure


@pytest.mark.matrix
def test_where_nothing_is_learned_the_largest_rate_without_harm_is_taken() -> None:
    """Labels without a pattern: steps make noise, and the lowest rate loses least."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, 6)).astype("float32")
    y = np.tile(np.arange(3, dtype="int32"), 700)[:2_000]
    zeros = keras.initializers.Zeros()
    model = keras.Sequential([layers.Dense(3, kernel_initializer=zeros)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SGDPlus(seed=4), loss)
    found = _find(model, x, y, lowest=1e-6, highest=1.0, num_examples=1_000)
    assert not found.is_sure
    best = np.nanmin(found.losses)
    place = list(found.rates).index(found.learning_rate)
    assert found.losses[place] <= 1.01 * best < found.losses[place + 1]
    assert found.learning_rate > 10 * found.rates[np.nanargmin(found.losses)]


@pytest.mark.matrix
def test_nothing_is_warned_of() -> None:
    model = _model(SGDPlus(max_loss_fraction=0.5, examples_per_update=3, seed=4))
    model.compile(
        SGDPlus(max_loss_fraction=0.5, examples_per_update=3, seed=4),
        lambda y, p: keras.ops.mean(p, axis=-1),  # negative
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _find(model)


@pytest.mark.matrix
def test_a_fit_without_decay_is_told_which_rate_suits_it() -> None:
    x, y = _data()
    model = _model(SGDPlus(seed=4))
    found = _find(model)
    arguments = {"batch_size": BATCH, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y, callbacks=[LinearDecay()], **arguments)
    with pytest.warns(UserWarning, match="which suits a rate that falls to zero"):
        model.fit(x, y, **arguments)
    model.optimizer.learning_rate = found.constant_learning_rate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y, **arguments)


@pytest.mark.matrix
def test_large_groups_visit_more_examples() -> None:
    x, y = _data()
    model = _model(SGDPlus(examples_per_update=8, seed=4), layers.Dense(8, "tanh"))
    found = _find(model, x, y, num_examples=BATCH)
    assert (found.num_examples == EXAMPLES).all()  # 64 * 8 are the least


@pytest.mark.matrix
def test_generators_that_reading_uses_are_put_back() -> None:
    class Augmented(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            x, y = _data()
            rows = slice(index * BATCH, index * BATCH + BATCH)
            return x[rows] + np.random.normal() + random.random(), y[rows]

    _find(_shared(), set_rate=False)  # a build draws seeds, as it does in `fit`
    before = _state(_shared())
    _find(_shared(), Augmented(), set_rate=False)
    _assert_same(before, _state(_shared()))


class Bypassing(keras.Sequential):
    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )
        return {"loss": loss}


def test_a_train_step_without_our_updates() -> None:
    model = Bypassing([layers.Dense(1)])
    model.compile(SGDPlus(seed=4), "mse")
    with pytest.raises(ValueError, match="updates per example. Received: one that"):
        _find(model, np.ones((200, 6)), np.ones((200, 1)))


def test_weights_that_are_nan() -> None:
    x, y = _data()
    model = _model(SGDPlus(seed=4))
    model.build((None, 6))
    model.layers[0].bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="needs a model with finite weights"):
        _find(model, x, y)


def test_data_without_a_batch() -> None:
    with pytest.raises(ValueError, match="Received: data without a batch"):
        _find(_shared(), _dataset().take(0))


@pytest.mark.matrix
def test_a_bad_example_is_named() -> None:
    x, y = _data()
    model = _model(SGDPlus(nonfinite="raise", seed=4), layers.Dense(8, "tanh"))
    with pytest.raises(ValueError, match="Some learning rate") as caught:
        _find(model, np.full_like(x, np.nan), y)
    assert isinstance(caught.value.__cause__, FloatingPointError)


def test_the_line_says_both_rates(capsys: pytest.CaptureFixture[str]) -> None:
    found = _find(_shared(), verbose=2)
    line = capsys.readouterr().out
    assert line == f"{found}\n"
    assert f"learning_rate={found.learning_rate:.3g} " in line
    assert f"{found.constant_learning_rate:.3g} for a constant one" in line
    _find(_shared(), verbose=1)
    assert "rate" in capsys.readouterr().out
    _find(_shared(), verbose=0)
    assert capsys.readouterr().out == ""


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _find(_shared())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot\(\) needs matplotlib"):
        found.plot()


@pytest.mark.matrix
def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = _find(_shared())
    ax = found.plot()
    drawn = [line for line in ax.lines if len(line.get_xdata()) == len(found.rates)]
    np.testing.assert_array_equal(drawn[0].get_ydata(), found.losses)
    assert found.plot(ax) is ax


def _strategy_model() -> Any:
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        return _model(SGDPlus(seed=4))


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (lambda: _model(keras.optimizers.Adam()), {}, TypeError, "updates per example"),
        (
            lambda: _model(SGDPlus(examples_per_update=None)),
            {},
            TypeError,
            "first, without examples_per_update=None",
        ),
        (
            lambda: keras.Sequential([layers.Dense(3)]),
            {},
            TypeError,
            "which is not compiled",
        ),
        (
            lambda: _model(SGDPlus(keras.optimizers.schedules.CosineDecay(0.1, 10))),
            {},
            ValueError,
            "Received: a schedule",
        ),
        (_strategy_model, {}, NotImplementedError, "outside any tf.distribute"),
        (_model, {"x": iter([1])}, ValueError, "an iterator that is read once"),
        (
            _model,
            {"x": np.ones((10, 6)), "y": np.ones(10)},
            ValueError,
            "examples for 64 updates",
        ),
        (lambda: np.ones(3), {}, TypeError, "`model` must be a keras.Model"),
        (_model, {"y": np.ones(10)}, ValueError, "the same number of examples"),
        (_shared, {"x": np.ones((200, 6)), "y": None}, ValueError, "`y` must be given"),
        (_model, {"batch_size": 0}, ValueError, "`batch_size` must be an int >= 1"),
        (_model, {"num_examples": 1.5}, TypeError, "`num_examples` must be an int"),
        (_model, {"lowest": "low"}, TypeError, "`lowest` must be a number"),
        (_model, {"lowest": 0.1, "highest": 0.2}, ValueError, "a factor of 10 apart"),
        (_model, {"highest": 1e4}, ValueError, "must be from 1e-09 to 1000"),
        (_model, {"class_weight": 3}, TypeError, "must be a dict from classes"),
        (_model, {"set_rate": 1}, TypeError, "`set_rate` must be True or False"),
        (_model, {"verbose": 3}, ValueError, "`verbose` must be"),
        (_model, {"order": "shuffled"}, ValueError, '`order` must be "random"'),
        (_model, {"seed": -1}, ValueError, "`seed` must be"),
    ],
)
def test_refused(make: Any, options: Any, error: type[Exception], match: str) -> None:
    x, y = _data()
    model = make()
    given = {"x": x, "y": y, "verbose": 0, **options}
    if "x" in options and "y" not in options:
        del given["y"]
    with pytest.raises(error, match=match):
        find_learning_rate(model, **given)
