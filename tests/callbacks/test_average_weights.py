"""`AverageWeights` averages as NumPy does, and shows averages where it says so."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import AverageWeights, ExactResume, SGDPlus
from tests.support.averaged import (
    EPOCHS,
    NUM_BATCHES,
    Recorder,
    assert_bits,
    assert_close,
    compiled,
    fit,
    loaded,
    oracle,
    trainable,
)
from tests.support.internals import hooks
from tests.support.messages import normalises
from tests.support.seen import VALIDATION, X, Y
from tests.support.tiers import matrix
from tests.support.twins import BATCH_SIZE, dense_model


@pytest.fixture
def float64() -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def _mean_squared_error(weights: list[np.ndarray]) -> float:
    # What `dense_model` predicts for the validation data, by NumPy.
    x, y = VALIDATION
    kernel, bias, second_kernel, second_bias = weights
    found = np.tanh(x @ kernel + bias) @ second_kernel + second_bias
    return float(np.mean((found - y) ** 2))


@functools.cache
def _plain() -> Recorder:
    # The same training in float64 without averages.
    seen = Recorder()
    fit(compiled(), seen, validation_data=None)
    return seen


def _check_evaluations(averaging: Any, start_epoch: int | None) -> None:
    """In float64: what `fit` evaluates and returns are the averages, by NumPy.

    Training itself must not see them: each batch ends with the bits of a run without.
    """
    plain, ours = _plain(), Recorder()
    model = compiled()
    history = fit(model, averaging, ours)
    for a, b in zip(ours.batches, plain.batches, strict=True):
        assert_bits(a, b)
    averages = oracle(plain.batches, start_epoch)
    for a, b in zip(ours.epochs, averages, strict=True):
        assert_close(a, b, 1e-12)
    assert_close(trainable(model), averages[-1], 1e-12)
    losses = [_mean_squared_error(each) for each in averages]
    np.testing.assert_allclose(history["val_loss"], losses, rtol=1e-12)
    assert np.abs(averages[-1][0] - plain.batches[-1][0]).max() > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("start_epoch", [None, *matrix(0, 1, 2)])
def test_equals_numpy(start_epoch: int | None, engagements: list[str]) -> None:
    _check_evaluations(AverageWeights(start_epoch), start_epoch)
    assert engagements


class TooEarly(AverageWeights):
    """Broken: the weights of training are back before the model is evaluated."""

    def on_test_begin(self, logs: Any = None) -> None:
        super().on_test_begin(logs)
        super().on_train_batch_begin(0)


class NeverBack(AverageWeights):
    """Broken: training goes on with the averages."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        pass

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        pass


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("broken", [TooEarly, *matrix(NeverBack)])
def test_a_broken_one_would_be_found(broken: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError):
        _check_evaluations(broken(), None)


@pytest.mark.matrix
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("start_epoch", [0, 1, 2])
def test_equals_torch(start_epoch: int) -> None:
    """torch's ASGD with batches of one: `t0` is its first averaged update, less 2."""
    torch = pytest.importorskip("torch", reason="torch is in the extra [bench]")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of its rate and of the averages' shares
    try:
        _compare_with_torch(torch, start_epoch)
    finally:
        torch.set_default_dtype(default)


def _compare_with_torch(torch: Any, start_epoch: int) -> None:
    first = start_epoch * len(X) + 1
    parts = [torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)]
    theirs = torch.nn.Sequential(*parts)
    model = compiled(optimizer=SGDPlus(0.02, order="given", jit_compile=False))
    with torch.no_grad():
        for own, w in zip(theirs.parameters(), model.get_weights(), strict=True):
            own.copy_(torch.tensor(w.T))
    rule = torch.optim.ASGD(
        theirs.parameters(), lr=0.02, lambd=0, alpha=0, t0=first - 2
    )
    for _ in range(EPOCHS):
        for x, y in zip(X.astype("float64"), Y.astype("float64"), strict=True):
            rule.zero_grad()
            ((theirs(torch.tensor(x)) - torch.tensor(y)) ** 2).mean().backward()
            rule.step()
    fit(model, AverageWeights(start_epoch), batch_size=1)
    averages = [rule.state[p]["ax"].numpy().T for p in theirs.parameters()]
    assert_close(trainable(model), averages, 1e-12)
    last = [p.detach().numpy().T for p in theirs.parameters()]
    assert np.abs(last[0] - averages[0]).max() > 1e-3


def _optimizers() -> dict[str, Callable[[], Any]]:
    keras_own = keras.optimizers
    return {
        "xla": lambda: SGDPlus(0.02, momentum=0.9, order="given"),
        "one_per_batch": lambda: SGDPlus(0.02, examples_per_update=None),
        "sgd": lambda: keras_own.SGD(0.05),
        "adam": lambda: keras_own.Adam(0.01),
        "loss_scale": lambda: keras_own.LossScaleOptimizer(keras_own.SGD(0.05)),
    }


@pytest.mark.parametrize("name", ["xla", *list(_optimizers())[1:]])
@pytest.mark.matrix
def test_every_optimizer(name: str) -> None:
    """With XLA, too, which writes weights in place: what is kept must not change."""
    make = _optimizers()[name]
    plain, ours = Recorder(), Recorder()
    fit(compiled(optimizer=make()), plain)
    model = compiled(optimizer=make())
    fit(model, AverageWeights(), ours)
    for a, b in zip(ours.batches, plain.batches, strict=True):
        assert_bits(a, b)
    assert_close(trainable(model), oracle(plain.batches)[-1])


def _restoring() -> Any:
    return keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)


ORDERS = list(itertools.permutations(("averages", "checkpoint", "stopping")))
_DEFAULT = ("checkpoint", "stopping", "averages")


@pytest.mark.matrix
@pytest.mark.parametrize(
    "order", [_DEFAULT, *(o for o in ORDERS if o != _DEFAULT)], ids="-".join
)
@pytest.mark.parametrize("with_validation", [True, False])
def test_order_of_callbacks(
    order: tuple[str, ...], with_validation: bool, tmp_path: Path
) -> None:
    """Checkpoints and the best weights are averages, in whatever order all stand."""
    plain = Recorder()
    fit(compiled(), plain, epochs=9)
    averages = oracle(plain.batches)
    losses = [_mean_squared_error(each) for each in averages]
    made = {
        "averages": AverageWeights(),
        "checkpoint": keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        "stopping": _restoring(),
    }
    data = VALIDATION if with_validation else None
    if not with_validation:
        made["stopping"].monitor = "loss"
    model = compiled()
    history = fit(model, *(made[o] for o in order), epochs=9, validation_data=data)
    best, ends = made["stopping"].best_epoch, len(history["loss"])
    if with_validation:
        assert ends < 9 and best == int(np.argmin(losses[:ends])) < ends - 1
    assert_close(trainable(model), averages[best], 1e-5)
    for epoch in range(ends):
        saved = keras.models.load_model(tmp_path / f"{epoch + 1}.keras")
        assert_close(trainable(saved), averages[epoch], 1e-5)
    assert np.abs(averages[best][0] - plain.batches[NUM_BATCHES * best + 4][0]).max()


@pytest.mark.matrix
def test_checkpoints_inside_an_epoch_are_weights_of_training(tmp_path: Path) -> None:
    path = str(tmp_path / "{epoch}-{batch}.weights.h5")
    saves = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=2)
    plain = Recorder()
    fit(compiled(), AverageWeights(), plain, saves)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == EPOCHS * NUM_BATCHES // 2
    for name in names:
        epoch, batch = map(int, name.split(".")[0].split("-"))
        seen = plain.batches[NUM_BATCHES * (epoch - 1) + batch - 1]
        assert_bits(loaded(tmp_path / name), seen)


@pytest.mark.matrix
def test_a_second_fit_starts_clean() -> None:
    """With the averages as weights, and t at 1; also after a run that broke off."""

    def break_off(epoch: int, logs: Any) -> None:
        raise KeyboardInterrupt

    averaging = AverageWeights()
    model = compiled()
    fit(model, averaging)
    plain = compiled()
    plain.set_weights(model.get_weights())
    optimizer = model.optimizer.variables
    plain.optimizer.build(plain.trainable_variables)
    for ours, theirs in zip(plain.optimizer.variables, optimizer, strict=True):
        ours.assign(theirs)
    seen, expected = Recorder(), Recorder()
    fit(model, averaging, seen, epochs=2)
    fit(plain, expected, epochs=2)
    assert_bits(seen.batches[-1], expected.batches[-1])
    assert_close(trainable(model), oracle(expected.batches)[-1])

    model, averaging = compiled(), AverageWeights()
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=break_off)
    with pytest.raises(KeyboardInterrupt):
        fit(model, averaging, stop)
    seen = Recorder()
    fit(model, averaging, seen)
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.matrix
def test_one_list_of_callbacks_for_two_fits() -> None:
    model, seen = compiled(), Recorder()
    own = [AverageWeights(), seen]
    every = keras.callbacks.CallbackList(
        own, add_history=True, model=model, epochs=EPOCHS, steps=NUM_BATCHES
    )
    for _ in range(2):
        seen.batches.clear()
        model.fit(X, Y, BATCH_SIZE, EPOCHS, 0, every, shuffle=False)
        assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.parametrize("is_list", [False, True])
def test_the_first_fit_of_a_process(is_list: bool, tmp_path: Path) -> None:
    """`model.fit` is looked up before the first callback can wrap it."""
    seen = Recorder()
    hooks.uninstall()
    model = compiled(optimizer=SGDPlus(0.02, examples_per_update=None))

    def listed(*callbacks: Any) -> Any:
        kwargs = {"add_history": True, "epochs": EPOCHS, "steps": NUM_BATCHES}
        kind = keras.callbacks.CallbackList
        return kind([*callbacks], model=model, **kwargs) if is_list else [*callbacks]

    model.fit(
        *(X, Y, BATCH_SIZE, EPOCHS, 0),
        listed(ExactResume(tmp_path), seen, AverageWeights()),
        shuffle=False,
    )
    averages = oracle(seen.batches)
    for ours, theirs in zip(seen.epochs, averages, strict=True):
        assert_close(ours, theirs)
    assert_close(trainable(model), averages[-1])
    hooks.uninstall()
    with pytest.raises(ValueError, match="same batches again"):
        model.fit(X, Y, verbose=0, callbacks=[ExactResume(tmp_path)])


@pytest.mark.matrix
def test_stopped_inside_an_epoch() -> None:
    def stop(batch: int, logs: Any) -> None:
        model.stop_training = batch == 1

    model, seen = compiled(), Recorder()
    halt = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    fit(model, halt, seen, AverageWeights())
    assert len(seen.batches) == 2
    assert_close(trainable(model), oracle(seen.batches, num_batches=2)[-1])


@pytest.mark.matrix
def test_an_evaluation_inside_an_epoch() -> None:
    """With the callback it sees the averages, and training goes on with the weights."""
    losses: list[float] = []

    def evaluate(batch: int, logs: Any) -> None:
        if batch == 2:
            with_it = model.evaluate(*VALIDATION, verbose=0, callbacks=[averaging])
            losses.append(with_it)

    model, averaging, ours, plain = compiled(), AverageWeights(), Recorder(), Recorder()
    look = keras.callbacks.LambdaCallback(on_train_batch_end=evaluate)
    fit(model, averaging, ours, look)
    fit(compiled(), plain)
    for a, b in zip(ours.batches, plain.batches, strict=True):
        assert_bits(a, b)
    early = oracle(plain.batches[:3], num_batches=3)[-1]
    assert losses[0] == pytest.approx(_mean_squared_error(early), rel=1e-5)


@pytest.mark.matrix
def test_several_steps_per_execution() -> None:
    """It averages when Keras calls it, once per 2 batches here, and once at the end."""
    model, seen = compiled(steps_per_execution=2), Recorder()
    fit(model, AverageWeights(), seen)
    assert len(seen.batches) == EPOCHS * 3
    assert_close(trainable(model), oracle(seen.batches, num_batches=3)[-1])


@pytest.mark.matrix
def test_a_model_that_its_first_batch_builds() -> None:
    def lazy() -> Any:
        return keras.Sequential([keras.layers.Dense(6, "tanh"), keras.layers.Dense(2)])

    model, seen = compiled(lazy), Recorder()
    assert not model.built
    fit(model, AverageWeights(), seen)
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.matrix
def test_a_loop_by_hand() -> None:
    """There the list is as its author made it; this is what the docs say to write."""
    model, seen = compiled(), Recorder()
    every = keras.callbacks.CallbackList([seen, AverageWeights()], model=model)
    every.on_train_begin()
    for epoch in range(EPOCHS):
        every.on_epoch_begin(epoch)
        for batch in range(NUM_BATCHES):
            part = slice(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
            every.on_train_batch_begin(batch)
            model.train_on_batch(X[part], Y[part])
            every.on_train_batch_end(batch)
        every.on_epoch_end(epoch)
    every.on_train_end()
    assert_close(trainable(model), oracle(seen.batches)[-1])


@normalises
def test_statistics_are_those_of_training() -> None:
    """Weights that are not trainable are not averaged, as with SwapEMAWeights."""

    def normalised() -> Any:
        layers = [
            keras.layers.Reshape((5, 1)),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(2),
        ]
        return keras.Sequential([keras.Input((5,)), *layers])

    plain, seen = compiled(normalised), Recorder()
    fit(plain, seen)
    model = compiled(normalised)
    fit(model, AverageWeights())
    fixed = [np.array(v.numpy()) for v in plain.non_trainable_variables]
    ours = [np.array(v.numpy()) for v in model.non_trainable_variables]
    assert len(fixed) == 3 and fixed[0].any()  # mean, variance, seed
    assert_bits(ours, fixed)
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.parametrize("kind", ["lora", *matrix("frozen")])
def test_frozen_weights_stay(kind: str) -> None:
    def model_of_kind() -> Any:
        model = dense_model()
        if kind == "frozen":
            model.layers[0].trainable = False
        else:
            model.layers[0].enable_lora(2)
        return model

    model, seen = compiled(model_of_kind), Recorder()
    fixed = [np.array(v.numpy()) for v in model.non_trainable_variables]
    assert len(fixed) == (2 if kind == "frozen" else 1)
    fit(model, AverageWeights(), seen)
    assert_bits([np.array(v.numpy()) for v in model.non_trainable_variables], fixed)
    assert_close(trainable(model), oracle(seen.batches)[-1])


@pytest.mark.matrix
@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_low_precision(policy: str) -> None:
    """Averages have float32 at least, and rounded ones never come back to them."""
    keras.config.set_dtype_policy(policy)
    model, seen = compiled(), Recorder()
    fit(model, AverageWeights(), seen)
    is_mixed = policy == "mixed_float16"
    dtypes = {v.dtype for v in model.trainable_variables}
    assert dtypes == {"float32" if is_mixed else "bfloat16"}
    averages = oracle(seen.batches)[-1]
    if not is_mixed:
        dtype = seen.batches[0][0].dtype
        averages = [a.astype(dtype).astype("float64") for a in averages]
    # A difference of rounding before the last rounding may move one unit of bfloat16.
    ours = [w.astype("float64") for w in trainable(model)]
    assert_close(ours, averages, 1e-6 if is_mixed else 2.0**-8)


def _swapping(model: Any) -> None:
    fit(model, keras.callbacks.SwapEMAWeights(), AverageWeights())


def _ema() -> Any:
    return compiled(optimizer=SGDPlus(0.02, use_ema=True, jit_compile=False))


def _wrapped_ema() -> Any:
    inner = keras.optimizers.Adam(use_ema=True)
    return compiled(optimizer=keras.optimizers.LossScaleOptimizer(inner))


Row = tuple[Callable[[], Any], Callable[[Any], Any], type[Exception], str]
REFUSED: dict[str, Row] = {
    "negative": (compiled, lambda m: AverageWeights(-1), ValueError, "int >= 0"),
    "no_int": (compiled, lambda m: AverageWeights(1.5), TypeError, "int >= 0, or None"),
    "late": (
        compiled,
        lambda m: fit(m, AverageWeights(3)),
        ValueError,
        r"start_epoch=3 and fit\(epochs=3\). Use 2 or less",
    ),
    "two": (
        compiled,
        lambda m: fit(m, AverageWeights(), AverageWeights(1)),
        ValueError,
        "AverageWeights and AverageWeights. Leave out all but one",
    ),
    "swap": (compiled, _swapping, ValueError, "AverageWeights and SwapEMAWeights. L"),
    "use_ema": (
        _ema,
        lambda m: fit(m, AverageWeights()),
        ValueError,
        r"AverageWeights and SGDPlus\(use_ema=True\). Leave out",
    ),
    "wrapped": (
        _wrapped_ema,
        lambda m: fit(m, AverageWeights()),
        ValueError,
        r"AverageWeights and Adam\(use_ema=True\)",
    ),
}


@pytest.mark.parametrize(
    ("make", "run", "error", "match"), REFUSED.values(), ids=list(REFUSED)
)
def test_refused(
    make: Callable[[], Any], run: Callable[[Any], Any], error: Any, match: str
) -> None:
    model = make()
    with pytest.raises(error, match=match):
        run(model)
    assert int(model.optimizer.iterations) == 0


def test_needs_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="AverageWeights needs the TensorFlow"):
        AverageWeights()


@pytest.mark.matrix
def test_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One compiled function per fit updates all weights, in all of its batches."""
    import tensorflow as tf

    made: list[Any] = []
    function = tf.function

    def counted(python: Any, **kwargs: Any) -> Any:
        made.append((python.__name__, kwargs.get("jit_compile")))
        return function(python, **kwargs)

    model = compiled(optimizer=SGDPlus(0.02, order="given"))
    fit(model, epochs=1)
    monkeypatch.setattr(tf, "function", counted)
    fit(model, AverageWeights())
    ours = [each for each in made if each[0] in ("update", "put_in", "put_back")]
    assert ours == [("update", True), ("put_in", False), ("put_back", False)]
