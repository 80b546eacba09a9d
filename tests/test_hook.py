"""The dispatch on Keras's train step: who is taken, who is left alone, what is kept."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus, _hook, _keras
from tests.twins import dense_data, dense_model

SGD = keras.optimizers.SGD
MOMENTUM: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9}
GIVEN = {**MOMENTUM, "order": "given"}
EXAMPLES = 12
TRAINER, _ = _keras.trainer_methods()["train_step"]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    _hook.install()
    yield
    _hook.install()


def linear_model() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])


def data() -> tuple[np.ndarray, np.ndarray]:
    return dense_data(EXAMPLES)


def state_of(model: Any, optimizer: Any) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.trainable_variables, *optimizer.variables)]


def fit(model: Any, batch_size: int = 4, **kwargs: Any) -> Any:
    x, y = data()
    arguments = {"batch_size": batch_size, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **arguments)


def trained(
    optimizer: Any,
    make_model: Callable[[], Any] = linear_model,
    batch_size: int = 4,
    **compile: Any,
) -> Any:
    keras.utils.set_random_seed(1)
    model = make_model()
    model.compile(optimizer, **{"loss": "mse", **compile})
    fit(model, batch_size)
    return model


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    # Velocities and weights move by 0.01 and more here; rounding is below 1e-6.
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def per_example() -> list[np.ndarray]:
    """The state that Keras's SGD reaches at batch_size=1."""
    optimizer = SGD(**MOMENTUM)
    return state_of(trained(optimizer, batch_size=1), optimizer)


@pytest.fixture(scope="module")
def per_batch() -> list[np.ndarray]:
    """The state that Keras's SGD reaches at batch_size=4."""
    optimizer = SGD(**MOMENTUM)
    return state_of(trained(optimizer), optimizer)


# Installing


_IMPORT = """
import os
import keras

def patched():
    return [dict(vars(c)) for c in (*keras.Model.__mro__, *keras.optimizers.SGD.__mro__)
            if c.__module__.startswith("keras")]

before, flags = patched(), os.environ.get("XLA_FLAGS")
from keras_sgd_plus import SGDPlus
assert patched() == before, "import alone altered Keras"
assert os.environ.get("XLA_FLAGS") == flags, "import alone set XLA_FLAGS"
SGDPlus(examples_per_update=None)
assert patched() == before, "a stock SGDPlus altered Keras"
assert os.environ.get("XLA_FLAGS") == flags, "a stock SGDPlus set XLA_FLAGS"
SGDPlus()
assert patched() != before
assert "xla_cpu_small_while_loop_byte_threshold" in os.environ["XLA_FLAGS"]
"""
_OPTION = "xla_cpu_small_while_loop_byte_threshold"
_EXTRA = "--xla_backend_extra_options="


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", f"{_EXTRA}{_OPTION}=10000000"),
        (f"{_EXTRA}{_OPTION}=7", f"{_EXTRA}{_OPTION}=7"),
        (
            f"--xla_a=1 {_EXTRA}xla_b=2",
            f"--xla_a=1 {_EXTRA}xla_b=2,{_OPTION}=10000000",
        ),
    ],
    ids=["unset", "set_by_user", "beside_others"],
)
def test_construction_sets_the_flag_of_xla(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    SGDPlus(jit_compile=False)
    SGDPlus(examples_per_update=None)
    assert os.environ["XLA_FLAGS"] == flags
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == expected
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == expected


def test_import_alone_changes_nothing() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_install_twice_wraps_once() -> None:
    wrapped = vars(TRAINER)["train_step"]
    _hook.install()
    SGDPlus()
    assert vars(TRAINER)["train_step"] is wrapped
    assert not hasattr(getattr(wrapped, _hook._MARK), _hook._MARK)


def test_uninstall_restores_and_construction_installs() -> None:
    original = getattr(vars(TRAINER)["train_step"], _hook._MARK)
    _hook.uninstall()
    assert vars(TRAINER)["train_step"] is original
    _hook.uninstall()
    assert vars(TRAINER)["train_step"] is original
    SGDPlus(examples_per_update=None)
    assert vars(TRAINER)["train_step"] is original
    SGDPlus()
    assert getattr(vars(TRAINER)["train_step"], _hook._MARK) is original


def test_wrapper_looks_like_the_original() -> None:
    wrapped = vars(TRAINER)["train_step"]
    original = getattr(wrapped, _hook._MARK)
    assert wrapped.__name__ == "train_step"
    assert inspect.signature(wrapped) == inspect.signature(original)


def test_unknown_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(self: Any, data: Any, more: Any) -> None:
        del self, data, more

    monkeypatch.setattr(TRAINER, "train_step", train_step)
    with pytest.raises(RuntimeError, match=r"train_step\(self, data, more\).*version"):
        SGDPlus()
    assert vars(TRAINER)["train_step"] is train_step
    SGDPlus(examples_per_update=None)  # needs no hook


# Who is taken


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("cls", [keras.optimizers.Adam, SGD])
def test_other_optimizers_are_untouched(
    cls: type, run_eagerly: bool, engagements: list[str]
) -> None:
    runs = []
    for hooked in (True, False):
        _hook.install() if hooked else _hook.uninstall()
        optimizer = cls(0.01)
        model = trained(optimizer, run_eagerly=run_eagerly)
        runs.append(state_of(model, optimizer))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(runs[0][2]) == EXAMPLES // 4  # iterations: per batch
    assert engagements == []


def test_seen_through_loss_scale_optimizer(engagements: list[str]) -> None:
    wrap = keras.optimizers.LossScaleOptimizer
    inner, outer = SGDPlus(**GIVEN), wrap(SGD(**MOMENTUM), dynamic_growth_steps=5)
    ours = trained(wrap(inner, dynamic_growth_steps=5))
    assert set(engagements) == {ours.name}
    theirs = trained(outer, batch_size=1)
    assert int(inner.iterations) == EXAMPLES
    assert_close(state_of(ours, ours.optimizer), state_of(theirs, outer))
    assert float(ours.optimizer.dynamic_scale) > 2.0**15  # and it did grow


class OwnStep(keras.Sequential):
    """A model with a train step of its own, which `how` makes."""

    how: Any = None

    def __init__(self) -> None:
        super().__init__([keras.Input((5,)), keras.layers.Dense(2)])

    def train_step(self, data: Any) -> Any:
        return type(self).how(self, data)


def own_step(how: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    return type("OwnStep", (OwnStep,), {"how": staticmethod(how)})


def by_super(model: Any, data: Any) -> Any:
    return super(OwnStep, model).train_step(data)


def by_optimizer(model: Any, data: Any) -> Any:
    return model.optimizer.train_step(model, data)


def by_tape(model: Any, data: Any) -> Any:
    x, y = data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    weights = model.trainable_variables
    gradients = tape.gradient(loss, weights)
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return {"mine": loss}


@pytest.mark.parametrize("how", [by_super, by_optimizer])
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_own_train_step_that_hands_on(
    how: Any, run_eagerly: bool, per_example: list[np.ndarray], engagements: list[str]
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = trained(optimizer, own_step(how), run_eagerly=run_eagerly)
    assert set(engagements) == {model.name}
    assert int(optimizer.iterations) == EXAMPLES
    assert_close(state_of(model, optimizer), per_example)


# The warning that the loop was bypassed


def fits(model: Any) -> list[str]:
    """Messages of two fits; the last batch of the second is shorter, so traced anew."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, batch_size=4)
        fit(model, batch_size=5, epochs=2)
    return [str(w.message) for w in caught]


def compiled(optimizer: Any, how: Any, run_eagerly: bool = False) -> Any:
    keras.utils.set_random_seed(1)
    model = own_step(how)()
    model.compile(optimizer, loss="mse", run_eagerly=run_eagerly)
    return model


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_bypass_warns_exactly_once(run_eagerly: bool, engagements: list[str]) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_tape, run_eagerly)
    texts = fits(model)
    assert len(texts) == 1
    assert optimizer.name in texts[0]
    assert "Return self.optimizer.train_step(self, data)" in texts[0]
    assert "super().train_step(data)" in texts[0]
    assert "examples_per_update=None" in texts[0]
    assert engagements == []


def test_bypass_warns_at_the_end_of_fit_and_users_step_wins(
    per_batch: list[np.ndarray],
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_tape)
    during: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: during.append(len(caught))
        )
        history = fit(model, callbacks=[note])
    assert (during, len(caught)) == ([0], 1)
    assert list(history.history) == ["mine"]
    assert_close(state_of(model, optimizer), per_batch)


def test_bypass_warns_through_loss_scale_optimizer() -> None:
    inner = SGDPlus(**GIVEN)
    model = compiled(keras.optimizers.LossScaleOptimizer(inner), by_tape)
    texts = fits(model)
    assert len(texts) == 1
    assert inner.name in texts[0]


def test_no_warning_where_one_update_per_batch_is_meant(
    per_batch: list[np.ndarray], engagements: list[str]
) -> None:
    optimizer = SGDPlus(**MOMENTUM, examples_per_update=None)
    model = compiled(optimizer, by_tape)
    fit(model)
    assert_close(state_of(model, optimizer), per_batch)
    assert fits(model) == []
    assert engagements == []


def test_no_warning_where_the_loop_runs() -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_super)
    by_tape(model, [tf.constant(part) for part in data()])  # a warm-up by hand
    assert fits(model) == []


@pytest.mark.parametrize("fit_before", [False, True])
def test_no_warning_for_loops_by_hand(fit_before: bool) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = compiled(optimizer, by_super)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fit_before:
            fit(model)
        step = tf.function(lambda x, y: by_tape(model, (x, y)))
        step(*data())
        by_tape(model, [tf.constant(part) for part in data()])
        optimizer.finalize_variable_values(model.trainable_variables)
    assert [str(w.message) for w in caught] == []


# Two optimizers


def _by_map(optimizer: Any) -> Any:
    other = keras.optimizers.Adam(0.01)
    return keras.optimizers.OptimizerMap(other, {".*kernel": optimizer})


def _by_map_default(optimizer: Any) -> Any:
    other = keras.optimizers.Adam(0.01)
    return keras.optimizers.OptimizerMap(optimizer, {".*kernel": other})


def _by_selector(optimizer: Any) -> Any:
    other = keras.optimizers.Adam(0.01)
    return lambda v: optimizer if "kernel" in v.path else other


SELECTORS = {"map": _by_map, "default": _by_map_default, "selector": _by_selector}
needs_multi_optimizer = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras before 3.15"
)


@needs_multi_optimizer
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("select", SELECTORS.values(), ids=list(SELECTORS))
def test_inside_multi_optimizer_is_refused(
    select: Any, run_eagerly: bool, engagements: list[str]
) -> None:
    optimizer = SGDPlus(**GIVEN)
    model = linear_model()
    before = model.get_weights()
    both = keras.optimizers.MultiOptimizer(select(optimizer))
    model.compile(both, loss="mse", run_eagerly=run_eagerly)
    with pytest.raises(NotImplementedError, match="examples_per_update=None") as raised:
        fit(model)
    assert optimizer.name in str(raised.value)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert engagements == []


@needs_multi_optimizer
@pytest.mark.parametrize("select", SELECTORS.values(), ids=list(SELECTORS))
def test_inside_multi_optimizer_per_batch(select: Any, engagements: list[str]) -> None:
    runs = []
    stock: Any = SGDPlus(**MOMENTUM, examples_per_update=None)
    for optimizer in (stock, SGD(**MOMENTUM)):
        model = trained(keras.optimizers.MultiOptimizer(select(optimizer)))
        runs.append(state_of(model, optimizer))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert engagements == []


class TwoPlayers(keras.Model):
    """As a GAN: two models, an optimizer each, one train step."""

    def __init__(self, compile_parts: bool) -> None:
        super().__init__()
        self.one, self.two = linear_model(), linear_model()
        self.optimizers = [SGDPlus(**GIVEN), SGDPlus(**{**GIVEN, "momentum": 0.5})]
        for part, optimizer in zip((self.one, self.two), self.optimizers, strict=True):
            # Where a part was compiled with another optimizer, the caller's counts.
            part.compile(optimizer if compile_parts else "adam", loss="mse")

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))

    def train_step(self, data: Any) -> Any:
        x, y = data
        first = self.optimizers[0].train_step(self.one, (x, y))
        second = self.optimizers[1].train_step(self.two, (x, -y))
        return {"one": first["loss"], "two": second["loss"]}


@pytest.mark.parametrize("compile_parts", [True, False], ids=["owned", "borrowed"])
def test_two_optimizers_in_one_train_step(
    compile_parts: bool, per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    both = TwoPlayers(compile_parts)
    both.build((None, 5))
    both.compile()
    start = both.two.get_weights()
    logs = fit(both).history
    assert set(logs) == {"one", "two"}
    assert set(engagements) == {both.one.name, both.two.name}
    assert engagements.count(both.one.name) == engagements.count(both.two.name)
    assert_close(state_of(both.one, both.optimizers[0]), per_example)
    x, y = data()
    twin = linear_model()
    optimizer = SGD(**{**MOMENTUM, "momentum": 0.5})
    twin.compile(optimizer, loss="mse")
    twin.set_weights(start)
    twin.fit(x, -y, batch_size=1, shuffle=False, verbose=0)
    assert_close(state_of(both.two, both.optimizers[1]), state_of(twin, optimizer))


# By hand, eagerly and in a tf.function


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = data()
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, EXAMPLES, 4)]


def test_by_hand_compiles_once(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse")
    logs = [optimizer.train_step(model, batch) for batch in batches()]
    assert_close(state_of(model, optimizer), per_example)
    assert int(optimizer.iterations) == EXAMPLES
    assert 1 <= len(engagements) <= 2  # the first trace builds the optimizer
    assert all(np.isfinite(float(log["loss"])) for log in logs)
    before = len(engagements)
    optimizer.learning_rate = 0.01
    for _ in range(2):
        for batch in batches():
            optimizer.train_step(model, batch)
    assert len(engagements) == before
    assert int(optimizer.iterations) == 3 * EXAMPLES


def test_by_hand_follows_recompile(engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    batch = batches()[0]
    model.compile(optimizer, loss="mse")
    optimizer.train_step(model, batch)
    engagements.clear()
    model.compile(optimizer, loss="mae", metrics=["mse"])
    before = model.get_weights()
    logs = optimizer.train_step(model, batch)
    assert set(logs) == {"loss", "mse"}
    assert engagements
    # The gradient of a mean absolute error of two outputs is x * 0.5 * sign.
    assert not np.array_equal(before[0], model.get_weights()[0])
    assert int(optimizer.iterations) == 8


@pytest.mark.parametrize("recompiled", [False, True])
def test_by_hand_follows_freezing(recompiled: bool, engagements: list[str]) -> None:
    model, optimizer = dense_model(), SGDPlus(**GIVEN)
    optimizer.build(model.trainable_variables)
    batch = batches()[0]

    def moved(trainable: bool) -> list[bool]:
        model.layers[0].trainable = trainable
        if recompiled:
            model.compile(optimizer, loss="mse")
        before = model.get_weights()
        optimizer.train_step(model, batch)
        after = model.get_weights()
        return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]

    model.compile(optimizer, loss="mse")
    assert moved(trainable=True) == [True, True, True, True]
    assert moved(trainable=False) == [False, False, True, True]
    assert moved(trainable=True) == [True, True, True, True]
    assert len(engagements) >= 3
    assert int(optimizer.iterations) == 12


def test_by_hand_in_a_function_of_the_user(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: optimizer.train_step(model, (x, y)))
    for x, y in batches():
        logs = step(tf.constant(x), tf.constant(y))
    assert set(logs) == {"loss"}
    assert_close(state_of(model, optimizer), per_example)
    assert engagements == [model.name]
    assert int(optimizer.iterations) == EXAMPLES


def test_by_hand_on_a_model_of_run_eagerly(
    per_example: list[np.ndarray], engagements: list[str]
) -> None:
    keras.utils.set_random_seed(1)
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    model.compile(optimizer, loss="mse", run_eagerly=True)
    for batch in batches():
        optimizer.train_step(model, batch)
    assert_close(state_of(model, optimizer), per_example)
    assert engagements == [model.name] * 3


# Nothing is kept alive


def _use(model: Any, optimizer: Any, by_hand: bool) -> None:
    model.compile(optimizer, loss="mse", metrics=["mae"])
    if by_hand:
        for batch in batches():
            optimizer.train_step(model, batch)
    else:
        fit(model)


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_deleted_model_is_collected(by_hand: bool, engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    _use(model, optimizer, by_hand)
    assert engagements
    gone = weakref.ref(model), weakref.ref(model.layers[0])
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert int(optimizer.iterations) == EXAMPLES  # it is the model that went


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_deleted_optimizer_is_collected(by_hand: bool, engagements: list[str]) -> None:
    model, optimizer = linear_model(), SGDPlus(**GIVEN)
    _use(model, optimizer, by_hand)
    assert engagements
    model.compile("sgd", loss="mse")
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert model.built
