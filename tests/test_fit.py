"""`fit` and its kin: callbacks, validation, stages of training, options of Keras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_sgd_plus import SGDPlus
from tests.twins import (
    Pair,
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    snapshot,
    train_pair,
)

N = 20


class Run:
    """One of two equal trainings: with SGDPlus in batches of 7, or SGD one by one."""

    def __init__(self, make_model: Callable[[], Any], is_ours: bool) -> None:
        keras.utils.set_random_seed(1)
        self.model, self.is_ours = make_model(), is_ours
        self.before = snapshot(_Compiled(self.model))
        self.logs: dict[str, list[float]] = {}

    def optimizer(self, **kwargs: Any) -> Any:
        kwargs = {"learning_rate": 0.05, "momentum": 0.9, **kwargs}
        if self.is_ours:
            return SGDPlus(order="given", **kwargs)
        return keras.optimizers.SGD(**kwargs)

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:
        kwargs = {"loss": "mse", **kwargs}
        self.model.compile(optimizer or self.optimizer(), **kwargs)

    def fit(self, x: Any, y: Any, **kwargs: Any) -> None:
        batch_size = 7 if self.is_ours else 1
        kwargs = {"batch_size": batch_size, "shuffle": False, "verbose": 0, **kwargs}
        for name, values in self.model.fit(x, y, **kwargs).history.items():
            self.logs.setdefault(name, []).extend(values)


class _Compiled:
    # What `snapshot` needs of a model that has no optimizer yet.
    def __init__(self, model: Any) -> None:
        self.optimizer = keras.optimizers.SGD()
        self.trainable_variables = model.trainable_variables
        self.non_trainable_variables = model.non_trainable_variables


def _run_pair(make_model: Callable[[], Any], story: Callable[[Run], None]) -> Pair:
    runs = [Run(make_model, is_ours) for is_ours in (True, False)]
    for run in runs:
        keras.utils.set_random_seed(2)
        story(run)
    ours, theirs = runs
    return Pair(ours.model, theirs.model, ours.logs, theirs.logs, ours.before)


# --- Arguments of fit, compile and SGDPlus. ---


def _schedule() -> dict[str, Any]:
    decay = keras.optimizers.schedules.ExponentialDecay(0.05, 4, 0.7)
    return {"learning_rate": decay}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "steps_per_execution": {"our_compile": {"steps_per_execution": 3}},
    "validation_data": {"fit": {"validation_data": dense_data(9, seed=8)}},
    "validation_split": {"fit": {"validation_split": 0.3, "epochs": 2}},
    "initial_epoch": {"fit": {"initial_epoch": 2, "epochs": 4}},
    "schedule": {"sgd": _schedule, "fit": {"epochs": 2}},
    "callable_learning_rate": {"sgd": {"learning_rate": lambda: 0.03}},
    "run_eagerly": {"our_compile": {"run_eagerly": True}},
    "loop_without_xla": {"plus": {"jit_compile": False}},
    "loop_must_xla": {"plus": {"jit_compile": True}},
    "model_with_xla": {"our_compile": {"jit_compile": True}},
    "model_without_xla": {"our_compile": {"jit_compile": False}},
    "model_with_xla_steps": {
        "our_compile": {"jit_compile": True, "steps_per_execution": 3}
    },
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_argument(arguments: dict[str, Any], engagements: list[str]) -> None:
    x, y = dense_data(N)
    pair = train_pair(dense_model, x, y, compile={"metrics": ["mae"]}, **arguments)
    assert_same(pair)
    epochs = len(pair.their_logs["loss"])
    rows = 14 if "validation_split" in arguments.get("fit", {}) else N
    assert_engaged(pair, engagements, rows * epochs)


def test_validation_is_logged(engagements: list[str]) -> None:
    x, y = dense_data(N)
    fit = {"validation_data": dense_data(9, seed=8), "validation_freq": 2, "epochs": 4}
    pair = train_pair(dense_model, x, y, fit=fit)
    assert_same(pair)
    assert_engaged(pair, engagements, 4 * N)
    assert len(pair.our_logs["val_loss"]) == 2


# --- By batches, and what does not train. ---


def test_train_on_batch(engagements: list[str]) -> None:
    """It returns the mean over the examples of what Keras returns for each."""
    x, y = dense_data(N)
    weights = np.linspace(0.5, 2.0, N).astype("float32")

    def story(run: Run) -> None:
        run.compile(metrics=["mae"], weighted_metrics=["mse"])
        for start, stop in ((0, 7), (7, 12), (12, 13), (13, N)):
            size = stop - start if run.is_ours else 1
            for i in range(start, stop, size):
                rows = slice(i, i + size)
                run.model.reset_metrics()  # Keras does it since 3.15
                logs = run.model.train_on_batch(
                    x[rows], y[rows], sample_weight=weights[rows], return_dict=True
                )
                for name in ("loss", "mae"):  # means over examples
                    values = run.logs.setdefault(name, [])
                    values.extend([float(logs[name])] * size)
        for name, values in run.logs.items():
            batches = np.split(np.array(values), [7, 12, 13])
            run.logs[name] = [float(np.mean(batch)) for batch in batches]

    pair = _run_pair(dense_model, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    flat = pair.ours.train_on_batch(x[:3], y[:3])
    assert len(flat) == 3 and np.isfinite(flat).all()


def test_class_weight_on_batch(engagements: list[str]) -> None:
    x, y = dense_data(N, outputs=3)
    labels, weight = y.argmax(1), {0: 0.3, 1: 1.0, 2: 4.0}

    def make() -> keras.Model:
        return keras.Sequential(
            [keras.Input((5,)), layers.Dense(3, activation="softmax")]
        )

    def story(run: Run) -> None:
        run.compile(loss="sparse_categorical_crossentropy")
        size = N if run.is_ours else 1
        losses = []
        for i in range(0, N, size):
            rows = slice(i, i + size)
            run.model.reset_metrics()  # Keras does it since 3.15
            losses.append(
                run.model.train_on_batch(x[rows], labels[rows], class_weight=weight)
            )
        run.logs["loss"] = [float(np.mean(losses))]

    pair = _run_pair(make, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class Echo(layers.Layer):
    """Reads what it has just assigned, to a frozen and to a trainable variable."""

    def build(self, input_shape: Any) -> None:
        del input_shape
        self.gain = self.add_weight((), "ones")
        self.mean = self.add_weight((), "zeros", trainable=False)

    def call(self, x: Any) -> Any:
        before = x * self.gain
        self.mean.assign(keras.ops.mean(before))
        self.gain.assign(0.9 * self.gain + 0.1 * keras.ops.mean(before**2))
        return before + x * self.gain + 0.1 * self.mean


class Compiled(keras.Model):
    """Uses one layer inside a tf.function and outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(5, activation="tanh")
        self.head = layers.Dense(2)

    @tf.function
    def inner(self, x: Any) -> Any:
        return self.hidden(x)

    def call(self, x: Any) -> Any:
        return self.head(self.inner(x) + self.hidden(x))


class Plain(Compiled):
    """The same without a tf.function."""

    def inner(self, x: Any) -> Any:
        return self.hidden(x)


def test_a_function_in_the_model_reads_the_current_weights(
    engagements: list[str],
) -> None:
    """Its trace holds the variables, whose values are those from before the batch."""
    x, y = dense_data(N)
    ours_then_theirs = iter([Compiled, Plain])
    pair = train_pair(lambda: next(ours_then_theirs)(), x, y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


ASSIGNING = {
    "spectral": lambda: layers.SpectralNormalization(layers.Dense(5)),
    "echo": Echo,
}


@pytest.mark.parametrize("make", ASSIGNING.values(), ids=ASSIGNING)
def test_assigning_in_call_cuts_the_gradient(
    make: Callable[[], layers.Layer], engagements: list[str]
) -> None:
    """To a tape a variable is a leaf, whatever was assigned to it before."""

    def make_model() -> keras.Model:
        first = layers.Dense(5, activation="tanh")
        return keras.Sequential([keras.Input((5,)), first, make(), layers.Dense(2)])

    x, y = dense_data(N)
    pair = train_pair(make_model, x, y, sgd={"learning_rate": 0.005})
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def test_evaluation_and_prediction_are_keras_own(engagements: list[str]) -> None:
    x, y = dense_data(N)
    model = dense_model()
    model.compile(SGDPlus(0.05), "mse", metrics=["mae"])
    model.fit(x, y, batch_size=N, verbose=0)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile("sgd", "mse", metrics=["mae"])
    traces, state = len(engagements), snapshot(model)
    for call in (
        lambda m: m.evaluate(x, y, batch_size=7, verbose=0),
        lambda m: m.test_on_batch(x, y),
        lambda m: m.predict(x, batch_size=7, verbose=0),
        lambda m: m.predict_on_batch(x),
    ):
        np.testing.assert_array_equal(call(model), call(twin))
    assert len(engagements) == traces
    for kind, arrays in snapshot(model).items():
        for a, b in zip(arrays, state[kind], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=kind)


# --- Between batches; more callbacks are in test_callbacks.py. ---


class HalvesRate(keras.callbacks.Callback):
    """Sets the learning rate every so many batches."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % self.every == 0:
            optimizer = self.model.optimizer
            optimizer.learning_rate = float(optimizer.learning_rate) * 0.5


def test_learning_rate_set_between_batches(engagements: list[str]) -> None:
    x, y = dense_data(21)
    ours, theirs = HalvesRate(1), HalvesRate(7)
    pair = train_pair(
        dense_model,
        x,
        y,
        fit={"epochs": 1},
        our_fit={"callbacks": [ours]},
        their_fit={"callbacks": [theirs]},
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 21)
    np.testing.assert_allclose(float(pair.ours.optimizer.learning_rate), 0.02 / 8)
    traces = len(engagements)
    pair.ours.fit(x, y, batch_size=7, epochs=2, callbacks=[ours], verbose=0)
    assert len(engagements) == traces  # and no new trace for a new rate


# --- Stages of training: each told once, for both. ---


def _two_fits(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.fit(*dense_data(N, seed=4))


def _unfreeze(run: Run) -> None:
    run.model.layers[0].trainable = False
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = True
    run.compile()
    run.fit(*dense_data(N))


def _freeze(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.compile()
    run.fit(*dense_data(N))


def _freeze_keeping_optimizer(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.compile(run.model.optimizer, loss="mae")
    run.fit(*dense_data(N))


def _freeze_without_compile(run: Run) -> None:
    """What Keras has traced goes on: freezing asks for a new compile."""
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.fit(*dense_data(N))


def _other_optimizer_and_back(run: Run) -> None:
    """Velocities and the count of updates are where they were left."""
    run.compile()
    run.fit(*dense_data(N))
    mine = run.model.optimizer
    run.compile(keras.optimizers.Adam(0.01))
    run.fit(*dense_data(N, seed=4), batch_size=7)
    run.compile(mine)
    run.fit(*dense_data(N))


def _other_model_of_the_same_layers(run: Run) -> None:
    """An optimizer may go to a model of the variables it was built for."""
    run.compile()
    run.fit(*dense_data(N))
    optimizer = run.model.optimizer
    run.model = keras.Model(run.model.inputs, run.model.outputs)
    run.compile(optimizer)
    run.fit(*dense_data(N))


def _lora(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].enable_lora(2)
    run.compile()
    run.fit(*dense_data(N))


def _other_loss_same_optimizer(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.compile(run.model.optimizer, loss="mae")
    run.fit(*dense_data(N))


def _rate_between_fits(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.optimizer.learning_rate = 0.005
    run.fit(*dense_data(N))


def _weights_between_fits(run: Run) -> None:
    run.compile()
    start = run.model.get_weights()
    run.fit(*dense_data(N))
    run.model.set_weights(start)
    run.fit(*dense_data(N, seed=4))


STORIES = {
    story.__name__.strip("_"): story
    for story in (
        _two_fits,
        _unfreeze,
        _freeze,
        _freeze_keeping_optimizer,
        _freeze_without_compile,
        _other_optimizer_and_back,
        _other_model_of_the_same_layers,
        _lora,
        _other_loss_same_optimizer,
        _rate_between_fits,
        _weights_between_fits,
    )
}


@pytest.mark.parametrize("story", STORIES.values(), ids=list(STORIES))
def test_story(story: Callable[[Run], None], engagements: list[str]) -> None:
    pair = _run_pair(dense_model, story)
    if story is _lora:  # other variables than before: what changed is not comparable
        pair.before = {}
    assert_same(pair)
    new_optimizer = story in (_unfreeze, _freeze, _lora)
    if story is _other_model_of_the_same_layers:
        assert engagements.pop(0) != pair.ours.name  # the first model
    assert_engaged(pair, engagements, N if new_optimizer else 2 * N)
    num_fits = 3 if story is _other_optimizer_and_back else 2
    assert len(pair.our_logs["loss"]) == num_fits


def _trunk() -> keras.Model:
    """A part to be trained first; its `BatchNormalization` keeps statistics."""
    norm = layers.BatchNormalization(momentum=0.9)
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), norm, layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack], name="trunk")


def test_transfer_learning(engagements: list[str]) -> None:
    """A trained trunk under a new head: frozen at first, then all of it trained slowly.

    Frozen, its `BatchNormalization` keeps its statistics and uses them.
    """
    kept: list[bool] = []

    def make() -> keras.Model:
        return keras.Sequential([keras.Input((5,)), _trunk(), layers.Dense(2)])

    def story(run: Run) -> None:
        run.compile(run.optimizer(learning_rate=0.005))
        run.fit(*dense_data(N))
        trunk, inputs = run.model.get_layer("trunk"), keras.Input((5,))
        run.model = keras.Model(inputs, layers.Dense(3)(trunk(inputs)))
        x, y = dense_data(N, outputs=3, seed=4)
        trunk.trainable = False
        run.compile(run.optimizer(learning_rate=0.005))
        before = trunk.get_weights()
        run.fit(x, y)
        pairs = zip(before, trunk.get_weights(), strict=True)
        kept.extend(np.array_equal(a, b) for a, b in pairs)
        trunk.trainable = True
        run.compile(run.optimizer(learning_rate=0.001))
        run.fit(x, y)
        assert not np.array_equal(trunk.get_weights()[0], before[0])

    pair = _run_pair(make, story)
    assert kept and all(kept)
    pair.before = {}  # other variables were trained in the middle
    assert_same(pair)
    assert engagements.pop(0) != pair.ours.name  # the trunk under its first head
    assert_engaged(pair, engagements, N)


def _moved(optimizer: Any) -> Any:
    """Compiled with the optimizer of another model."""
    optimizer.build(dense_model().trainable_variables)
    model = dense_model()
    model.compile(optimizer, "mse")
    return model


def _thawed(optimizer: Any) -> Any:
    """Compiled with the optimizer that was built while a layer was frozen."""
    model = dense_model()
    model.layers[0].trainable = False
    optimizer.build(model.trainable_variables)
    model.layers[0].trainable = True
    model.compile(optimizer, "mse")
    return model


def _by_train_step(model: Any, x: Any, y: Any) -> None:
    step = getattr(model.optimizer, "train_step", None)  # SGD has none
    model.train_on_batch(x, y) if step is None else step(model, (x, y))


TRAIN: dict[str, Callable[..., Any]] = {
    "fit": lambda model, x, y: model.fit(x, y, verbose=0),
    "train_on_batch": lambda model, x, y: model.train_on_batch(x, y),
    "train_step": _by_train_step,
}


@pytest.mark.parametrize("train", TRAIN.values(), ids=list(TRAIN))
@pytest.mark.parametrize("make", [_moved, _thawed], ids=["moved", "thawed"])
def test_unknown_variables_are_refused_as_by_keras(make: Any, train: Any) -> None:
    """A new optimizer is needed for new variables, and Keras's own error says so."""
    texts = []
    for cls in (SGDPlus, keras.optimizers.SGD):
        optimizer = cls(0.02, 0.9)
        model = make(optimizer)
        state = snapshot(model)
        with pytest.raises(ValueError, match="recreate a new optimizer") as raised:
            train(model, *dense_data(N))
        for kind, arrays in snapshot(model).items():
            for a, b in zip(arrays, state[kind], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=kind)
        text = str(raised.value)
        for name in (model.name, model.layers[0].name):
            text = text.replace(name, "name")
        texts.append(text)
    assert texts[0] == texts[1]


def test_two_models_that_share_layers(engagements: list[str]) -> None:
    """Two heads on one trunk, an optimizer each, trained in turns."""
    x, y = dense_data(N)
    heads: dict[bool, Any] = {}

    def story(run: Run) -> None:
        run.compile()
        inputs, shared = run.model.inputs, run.model.layers[0].output
        head = keras.Model(inputs, layers.Dense(1)(shared))
        second = heads[run.is_ours] = Run(lambda: head, run.is_ours)
        second.compile(run.optimizer(learning_rate=0.02, momentum=0.5))
        for _ in range(2):
            run.fit(x, y)
            second.fit(x, y[:, :1])

    pair = _run_pair(dense_model, story)
    assert_same(pair)
    ours, theirs = heads[True], heads[False]
    other = Pair(ours.model, theirs.model, ours.logs, theirs.logs, ours.before)
    assert_same(other)
    names = {pair.ours.name, other.ours.name}
    assert set(engagements) == names and len(engagements) == 2
    for model in (pair.ours, other.ours):
        assert int(model.optimizer.iterations) == 2 * N


def test_two_models_in_turns(engagements: list[str]) -> None:
    """Two models and optimizers do not disturb each other."""
    x, y = dense_data(N)
    together = [Run(dense_model, True) for _ in range(2)]
    alone = [Run(dense_model, True) for _ in range(2)]
    for runs in (together, alone):
        for run, rate in zip(runs, (0.01, 0.1), strict=True):
            run.compile(run.optimizer(learning_rate=rate))
    for _ in range(2):
        for run in together:
            run.fit(x, y)
    for run in alone:
        run.fit(x, y, epochs=2)
    for a, b in zip(together, alone, strict=True):
        for v, w in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
            np.testing.assert_array_equal(v, w)
    assert len(set(engagements)) == 4


# --- Options of SGD on gradients that are not plain tensors, and on variables. ---


def _embedding_model() -> keras.Model:
    ids = keras.Input((4,), dtype="int32")
    rows = layers.Embedding(9, 3)(ids)
    return keras.Model(ids, layers.Dense(1)(layers.Flatten()(rows)))


def _ids() -> tuple[np.ndarray, np.ndarray]:
    # Few ids, so that one often comes twice in an example.
    x = np.random.default_rng(0).integers(0, 5, (N, 4)).astype("int32")
    return x, np.sin(x.sum(1, keepdims=True)).astype("float32")


SPARSE: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "clipnorm": {"momentum": 0.0, "clipnorm": 0.1},
    "clipvalue": {"momentum": 0.0, "clipvalue": 0.05},
    "global_clipnorm": {"momentum": 0.0, "global_clipnorm": 0.1},
    "decay_and_ema": {
        "momentum": 0.0,
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_momentum": 0.8,
    },
    "accumulation": {"momentum": 0.9, "gradient_accumulation_steps": 3},
}


@pytest.mark.parametrize("sgd", SPARSE.values(), ids=list(SPARSE))
def test_sparse_gradient(sgd: dict[str, Any], engagements: list[str]) -> None:
    pair = train_pair(_embedding_model, *_ids(), sgd={"learning_rate": 0.03, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def test_exclusion_from_weight_decay(engagements: list[str]) -> None:
    def story(run: Run, exclude: bool = True) -> None:
        optimizer = run.optimizer(weight_decay=0.5)
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        run.compile(optimizer)
        run.fit(*dense_data(N))

    pair = _run_pair(dense_model, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    plain = Run(dense_model, True)
    story(plain, exclude=False)
    gaps = [
        np.abs(a - b).max()
        for a, b in zip(pair.ours.get_weights(), plain.model.get_weights(), strict=True)
    ]
    assert max(gaps) > 1e-3  # the exclusion matters


CONSTRAINED: dict[str, dict[str, Any]] = {
    "every_update": {},
    "while_accumulating": {"gradient_accumulation_steps": 3},
}


@pytest.mark.parametrize("sgd", CONSTRAINED.values(), ids=list(CONSTRAINED))
def test_constraint(sgd: dict[str, Any], engagements: list[str]) -> None:
    def make() -> keras.Model:
        return dense_model(
            kernel_constraint=keras.constraints.UnitNorm(),
            bias_constraint=keras.constraints.NonNeg(),
        )

    x, y = dense_data(N)
    pair = train_pair(make, x, y, sgd={"learning_rate": 0.1, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    kernel, bias = pair.ours.get_weights()[:2]
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)
    assert (bias >= 0).all() and (bias == 0).any()


class Ranged(layers.Layer):
    """Divides by a range whose "gradient" is its next value, as float8 scales do."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 2), initializer="random_normal")
        self.range = self.add_weight(
            shape=(),
            initializer="ones",
            autocast=False,
            overwrite_with_gradient=True,
        )

    def call(self, x: Any) -> Any:
        @ops.custom_gradient
        def scaled(x: Any, value: Any) -> Any:
            def grad(*args: Any, upstream: Any = None) -> Any:
                if upstream is None:
                    (upstream,) = args
                # A tenth of the way to the largest input seen in this step.
                return upstream / value, 0.9 * value + 0.1 * ops.max(ops.abs(x))

            return x / value, grad

        x = scaled(x, ops.convert_to_tensor(self.range))
        return ops.matmul(x, self.kernel)


OVERWRITTEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "with_options": {
        "weight_decay": 0.1,
        "clipnorm": 0.2,
        "loss_scale_factor": 4.0,
    },
}


@pytest.mark.parametrize("sgd", OVERWRITTEN.values(), ids=list(OVERWRITTEN))
def test_variable_overwritten_with_gradient(
    sgd: dict[str, Any], engagements: list[str]
) -> None:
    def make() -> keras.Model:
        return keras.Sequential([keras.Input((5,)), Ranged()])

    x, y = dense_data(N)
    pair = train_pair(make, x, y, sgd={"learning_rate": 0.1, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    (value,) = (v for v in pair.ours.trainable_variables if v.overwrite_with_gradient)
    assert abs(float(value) - 1.0) > 0.05


@pytest.mark.parametrize("steps", [None, 2], ids=["plain", "accumulation"])
@pytest.mark.parametrize("xla", [True, False], ids=["xla", "no_xla"])
def test_float8(xla: bool, steps: int | None, engagements: list[str]) -> None:
    """Rounding to 8 bits now and then makes 1/16 of a value of a float32 ulp.

    So Keras has to run the same kernels, and under XLA only a few examples are bound
    to round alike.
    """

    def make() -> keras.Model:
        dense = layers.Dense(16)
        model = keras.Sequential([keras.Input((16,)), dense])
        dense.quantize("float8")
        return model

    num_examples = 4 if xla else N
    pair = train_pair(
        make,
        *dense_data(num_examples, 16, 16),
        sgd={"gradient_accumulation_steps": steps},
        plus={"jit_compile": xla},
        compile={"jit_compile": xla},
        our_compile={"jit_compile": False},
    )
    assert_same(pair, tolerance=1e-2 if xla else None, logs=1e-3 if xla else 2e-5)
    assert_engaged(pair, engagements, num_examples)


# --- Loss scaling: an example whose gradient overflows is skipped, not its batch. ---


def _overflowing(factor: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = dense_data(N)
    x[[3, 4, 11]] *= factor
    return x, y


def test_overflow_in_mixed_precision(engagements: list[str]) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    x, y = _overflowing(2e3)
    pair = train_pair(
        lambda: keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(2),
                layers.Activation("linear", dtype="float32"),
            ]
        ),
        x,
        y,
        sgd={"learning_rate": 0.001},
        compile={"jit_compile": True},
        our_compile={"jit_compile": False},
    )
    assert_same(pair, tolerance=5e-3, logs=2e-3)
    _assert_skipped(pair, engagements)


def test_dynamic_growth_of_the_loss_scale(engagements: list[str]) -> None:
    """In float32 all is exact: counter, scale and weights."""

    def story(run: Run) -> None:
        optimizer = keras.optimizers.LossScaleOptimizer(
            run.optimizer(momentum=0.9), initial_scale=8.0, dynamic_growth_steps=3
        )
        run.compile(optimizer)
        run.fit(x, y)

    x, y = _overflowing(1e30)
    pair = _run_pair(dense_model_linear, story)
    pair.our_logs = pair.their_logs = {}  # the loss is infinite
    assert_same(pair)
    _assert_skipped(pair, engagements)


def dense_model_linear() -> keras.Model:
    """One layer: an example of 1e30 makes its own gradient infinite."""
    return keras.Sequential([keras.Input((5,)), layers.Dense(2)])


def _assert_skipped(pair: Pair, engagements: list[str]) -> None:
    ours, theirs = pair.ours.optimizer, pair.theirs.optimizer
    assert isinstance(ours, keras.optimizers.LossScaleOptimizer)
    updates = int(theirs.inner_optimizer._iterations)
    assert 0 < updates < N  # some were skipped
    assert_engaged(pair, engagements, updates)
    for name in ("step_counter", "dynamic_scale"):
        assert float(getattr(ours, name)) == float(getattr(theirs, name))
    assert float(ours.dynamic_scale) != ours.initial_scale


# --- Determinism. ---

DETERMINISM = """
import json, keras, numpy as np
import tensorflow as tf
from keras_sgd_plus import SGDPlus, _compile
from tests.twins import dense_data, dense_model

tf.config.experimental.enable_op_determinism()
choices, wants_xla = [], _compile.wants_xla
def remembered(*args):
    choices.append(wants_xla(*args))
    return choices[-1]
_compile.wants_xla = remembered
x, y = dense_data(20)
weights = []
for optimizer, batch_size in (
    (SGDPlus(0.05, 0.9, seed=1), 7),
    (SGDPlus(0.05, 0.9, seed=1), 7),
    (SGDPlus(0.05, 0.9, order="given"), 7),
    (keras.optimizers.SGD(0.05, 0.9), 1),
):
    keras.utils.set_random_seed(1)
    model = dense_model()
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
print(json.dumps({
    "xla": choices,
    "keras_xla": bool(model.jit_compile),
    "repeated": bool((weights[0] == weights[1]).all()),
    "gap": float(np.abs(weights[2] - weights[3]).max()),
}))
"""


def test_op_determinism_keeps_xla() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DETERMINISM], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["xla"] and all(seen["xla"])
    assert not seen["keras_xla"]  # as Keras itself decides under determinism
    assert seen["repeated"]
    assert seen["gap"] < 1e-6
