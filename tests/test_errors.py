"""Every message: what triggers it, its class, and that it says how to fix it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus, _checks, _hook, _keras, _messages
from tests.test_nonfinite import test_warns_once_per_fit_and_forgets_the_last
from tests.test_resume import test_refused
from tests.twins import dense_data

SGD = keras.optimizers.SGD
ROOT = Path(__file__).parent.parent


def linear_model(**kwargs: Any) -> keras.Model:
    return keras.Sequential([keras.Input((5,), **kwargs), layers.Dense(2)])


def compiled(model: Any = None, *, plus: Any = None, **compile: Any) -> Any:
    """A model compiled with SGDPlus. Without XLA unless asked: most here never run."""
    model = linear_model() if model is None else model
    arguments = {"order": "given", "jit_compile": False, **(plus or {})}
    model.compile(
        SGDPlus(0.05, momentum=0.9, **arguments), **{"loss": "mse", **compile}
    )
    return model


def step(model: Any, *data: Any) -> Any:
    return model.optimizer.train_step(model, data)


def examples(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    return dense_data(num_examples)


def streamed(*parts: Any, batch_size: int | None = 4, static: Any = ()) -> Any:
    """A dataset of batches whose size only the running graph knows, but for `static`.

    Args:
        parts: arrays, (num_examples, ...); a batch takes `batch_size` of each, so the
            last batches of shorter arrays are short or empty.
        batch_size: None for one batch of all.
        static: positions of parts whose batch size tracing may know.
    """
    size = batch_size or len(parts[0])

    def generate() -> Any:
        for i in range(0, max(len(part) for part in parts), size):
            yield tuple(part[i : i + size] for part in parts)

    signature = tuple(
        tf.TensorSpec((size if i in static else None, *part.shape[1:]), part.dtype)
        for i, part in enumerate(parts)
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def stream(model: Any, dataset: Any) -> Any:
    return model.fit(dataset, shuffle=False, verbose=0)


def caught_by(function: Callable[[], Any], match: str) -> list[str]:
    """Texts of the warnings of ours that say `match`; any other warning is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    texts = [str(w.message) for w in caught]
    assert all(match in text for text in texts), texts
    return texts


# Arguments of the constructor

ARGUMENTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *[
        ("examples_per_update", {"examples_per_update": value}, error, r"Use 1 for one")
        for value, error in [
            (0, ValueError),
            (-1, ValueError),
            (1.5, TypeError),
            (True, TypeError),
            ("1", TypeError),
        ]
    ],
    *[
        ("order", {"order": value}, ValueError, r'Use "reshuffle" for')
        for value in ["shuffle", "Given", "", None, 1, ["given"]]
    ],
    *[
        ("seed", {"seed": value}, error, r"Use seed=None to derive one")
        for value, error in [
            (-1, ValueError),
            (2**63, ValueError),
            (1.5, TypeError),
            (True, TypeError),
            ("7", TypeError),
        ]
    ],
    *[
        ("nonfinite", {"nonfinite": value}, ValueError, r'Use "skip" to leave out')
        for value in ["ignore", None, True, ["skip"]]
    ],
    *[
        ("jit_compile", {"jit_compile": value}, ValueError, r'Use "auto" for XLA')
        for value in ["yes", None, 1, 0]
    ],
]


@pytest.mark.parametrize(
    ("check", "arguments", "error", "fix"),
    ARGUMENTS,
    ids=[f"{check}-{next(iter(a.values()))!r}" for check, a, _, _ in ARGUMENTS],
)
def test_argument(
    check: str, arguments: dict[str, Any], error: type[Exception], fix: str
) -> None:
    with pytest.raises(error, match=fix) as raised:
        SGDPlus(**arguments)
    assert type(raised.value) is error
    value = arguments[check]
    assert str(raised.value).startswith(f"`{check}` must be ")
    assert f"Received: {check}={value!r}." in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"examples_per_update": None},
        {"examples_per_update": 7},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"order": "given"},
        {"order": "reshuffle"},
        {"jit_compile": True},
        {"jit_compile": False},
        {"jit_compile": "auto"},
    ],
    ids=str,
)
def test_argument_is_accepted(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    assert getattr(SGDPlus(**arguments), name) == value


def test_new_arguments_are_keyword_only() -> None:
    thirteen = list(inspect.signature(SGD.__init__).parameters)[1:14]
    ours = inspect.signature(SGDPlus.__init__).parameters
    assert list(ours)[1:14] == thirteen
    new = ("examples_per_update", "order", "seed", "jit_compile")
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in new)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 1},
        {"learning_rate": None},
        {"momentum": 1},
        {"momentum": -0.1},
        {"momentum": 1.1},
        {"clipnorm": 1.0, "clipvalue": 1.0},
        {"clipnorm": 1.0, "global_clipnorm": 1.0},
        {"use_ema": True, "ema_momentum": 1.1},
        {"use_ema": True, "ema_overwrite_frequency": 0.5},
        {"gradient_accumulation_steps": 1},
        {"lr": 0.1},
    ],
    ids=str,
)
def test_argument_of_sgd(arguments: dict[str, Any]) -> None:
    errors = []
    for cls in (SGD, SGDPlus):
        with pytest.raises(Exception) as raised:
            cls(**arguments)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]


# Messages: one row each, by the function of `_checks` that writes it


class Printing(layers.Layer):
    """A layer with an operation that XLA refuses, though it says `supports_jit`."""

    def __init__(self, operation: Callable[[Any], Any]) -> None:
        super().__init__()
        self.operation = operation
        assert self.supports_jit

    def call(self, x: Any) -> Any:
        return self.operation(x)


def tf_print(x: Any) -> Any:
    with tf.control_dependencies([tf.print(x[0, 0], output_stream="file://%s")]):
        return tf.identity(x)


def tf_numpy_function(x: Any) -> Any:
    (seen,) = tf.numpy_function(lambda v: [np.float32(0)], [x], [tf.float32])
    return x + tf.stop_gradient(tf.reshape(seen, ()))


def tf_strings(x: Any) -> Any:
    length = tf.strings.length(tf.strings.as_string(x[0, 0]))
    return x + 0.0 * tf.cast(length, x.dtype)


def fail_backend() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "jax")
        SGDPlus()


def fail_batch_of_nothing() -> None:
    step(compiled(), None)


def fail_axis(*data: Any) -> Callable[[Any], None]:
    return lambda model: step(model, *data)


X, Y = examples(6)
WEIGHTS = np.ones(6, "float32")

# id -> (function of _checks, what is done with a model, error, what the message says)
Row = tuple[str, Callable[[Any], Any], type[Exception], str]
NOT_ALIKE = "Give every example its target"
EMPTY = "Drop empty batches"
INVALID = tf.errors.InvalidArgumentError

BATCHES: dict[str, Row] = {
    "nothing": ("batch", lambda m: step(m, None), ValueError, "Pass x as arrays"),
    "no_axis_x": ("batch", lambda m: step(m, 1.0), ValueError, r"x\[None\]"),
    "no_axis_y": ("batch", lambda m: step(m, X, 1.0), ValueError, r"x\[None\]"),
    "no_axis_weight": (
        "batch",
        lambda m: step(m, X, Y, 1.0),
        ValueError,
        r"`sample_weight` must have a batch axis",
    ),
    "ragged_rows": (
        "rectangular",
        lambda m: step(m, np.array([np.ones(5), np.ones(4)] * 3, dtype=object), Y),
        ValueError,
        "Pad the examples to one length",
    ),
    "y_shorter": ("batch", lambda m: step(m, X, Y[:2]), ValueError, NOT_ALIKE),
    "y_longer": ("batch", lambda m: step(m, X[:2], Y), ValueError, NOT_ALIKE),
    "weight_shorter": (
        "batch",
        lambda m: step(m, X, Y, WEIGHTS[:5]),
        ValueError,
        "Received: x with 6 and sample_weight with 5",
    ),
    "y_shorter_in_fit": (
        "batch",
        lambda m: stream(m, streamed(X, Y[:3], batch_size=None, static=(0,))),
        INVALID,
        NOT_ALIKE,
    ),
    "y_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X, Y[:3], batch_size=None)),
        INVALID,
        NOT_ALIKE,
    ),
    "x_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X[:3], Y, batch_size=6)),
        INVALID,
        NOT_ALIKE,
    ),
    "x_dynamic_y_static": (
        "batch",
        lambda m: stream(m, streamed(X[:3], Y, batch_size=6, static=(1,))),
        INVALID,
        NOT_ALIKE,
    ),
    "weight_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X, Y, WEIGHTS[:3], batch_size=None)),
        INVALID,
        NOT_ALIKE,
    ),
    "static_in_fit": (
        "batch",
        lambda m: stream(m, tf.data.Dataset.from_tensors((X, Y[:3]))),
        ValueError,
        "Received: x with 6 and y with 3",
    ),
    "empty": ("batch", lambda m: step(m, X[:0], Y[:0]), ValueError, EMPTY),
    "empty_static_in_fit": (
        "batch",
        lambda m: stream(m, tf.data.Dataset.from_tensors((X[:0], Y[:0]))),
        ValueError,
        EMPTY,
    ),
    "empty_dynamic": (
        "batch",
        lambda m: stream(m, streamed_empty()),
        INVALID,
        EMPTY,
    ),
    "rank_unknown": (
        "batch",
        lambda m: stream(m, streamed_without_rank()),
        ValueError,
        "set_shape",
    ),
}


def streamed_empty() -> Any:
    signature = (
        tf.TensorSpec((None, 5), tf.float32),
        tf.TensorSpec((None, 2), tf.float32),
    )
    return tf.data.Dataset.from_generator(
        lambda: iter([(X[:0], Y[:0])]), output_signature=signature
    )


def streamed_without_rank() -> Any:
    # The sample weight: Keras itself needs the rank of x and y.
    signature = (
        tf.TensorSpec((None, 5), tf.float32),
        tf.TensorSpec((None, 2), tf.float32),
        tf.TensorSpec(None, tf.float32),
    )
    return tf.data.Dataset.from_generator(
        lambda: iter([(X, Y, WEIGHTS)]), output_signature=signature
    )


@pytest.mark.parametrize("jit_compile", [False, "auto"], ids=["plain", "xla"])
@pytest.mark.parametrize("row", BATCHES.values(), ids=list(BATCHES))
def test_batch(row: Row, jit_compile: Any) -> None:
    _, trigger, error, fix = row
    model = compiled(plus={"jit_compile": jit_compile})
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    before = [v.numpy() for v in state]
    with pytest.raises(error, match=fix) as raised:
        trigger(model)
    assert "Received: " in str(raised.value)
    for a, b in zip(before, state, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("row", ["y_shorter", "weight_shorter", "empty"])
def test_batch_of_an_eager_model(row: str) -> None:
    _, trigger, error, fix = BATCHES[row]
    model = compiled(run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(error, match=fix):
        trigger(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _unconnected() -> Any:
    class Unconnected(keras.Sequential):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return tf.constant(1.0)

    return Unconnected([keras.Input((5,)), layers.Dense(2)])


def _partly_connected() -> Any:
    class Half(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = layers.Dense(2), layers.Dense(2)
            self.used.build((None, 5))
            self.unused.build((None, 5))

        def call(self, x: Any) -> Any:
            return self.used(x)

    return Half()


def _forgetful() -> Any:
    unknown = iter([keras.Variable(0.0, trainable=False) for _ in range(20)])

    class Forgetful(keras.Sequential):
        def compute_metrics(self, *args: Any, **kwargs: Any) -> Any:
            next(unknown).assign(1.0)  # another one in every trace
            return super().compute_metrics(*args, **kwargs)

    return Forgetful([keras.Input((5,)), layers.Dense(2)])


def _stateful(batch_size: int) -> Any:
    x = keras.Input(batch_shape=(batch_size, 3, 5))
    return keras.Model(x, layers.Dense(2)(layers.LSTM(2, stateful=True)(x)))


def _fit(model: Any, **kwargs: Any) -> Any:
    return model.fit(X, Y, **{"batch_size": 3, "verbose": 0, **kwargs})


class AssignsInBranch(layers.Layer):
    """Writes a variable in one branch of a condition."""

    def build(self, input_shape: Any) -> None:
        del input_shape
        self.scale = self.add_weight((5, 2), "ones")
        self.count = self.add_weight((), "zeros", trainable=False)

    def call(self, x: Any) -> Any:
        def counted() -> Any:
            self.count.assign(self.count + 1)
            return x

        x = tf.cond(tf.reduce_sum(x) > 0, counted, lambda: x)
        return keras.ops.matmul(x, self.scale)


class OwnRule(SGDPlus):
    """Overrides what the loop does not ask."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        variable.assign(variable * 0)


def _fit_subclass(model: Any) -> None:
    model.compile(OwnRule(), "mse")
    _fit(model)


def _multi(model: Any) -> None:
    inside = keras.optimizers.OptimizerMap(SGDPlus())
    model.compile(keras.optimizers.MultiOptimizer(inside), loss="mse")
    _fit(model)


def _fit_nan(model: Any) -> None:
    model.compile(SGDPlus(nonfinite="raise"), "mse")
    model.fit(X * np.nan, Y, verbose=0)


def _fit_with_late_momentum(model: Any) -> None:
    model.compile(SGDPlus(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.momentum = 0.9
    _fit(model)


def _other_signature(model: Any) -> None:
    del model
    with pytest.MonkeyPatch.context() as patch:
        owner, _ = _keras.trainer_methods()["train_step"]
        patch.setattr(owner, "train_step", lambda self: None)
        SGDPlus()


ERRORS: dict[str, tuple[Callable[[], Any], Row]] = {
    "other_backend": (
        linear_model,
        (
            "backend",
            lambda m: fail_backend(),
            RuntimeError,
            "Received.*'jax'. Set KERAS_BACKEND=tensorflow before importing keras",
        ),
    ),
    "fixed_batch_size": (
        lambda: _stateful(8),
        (
            "model",
            lambda m: m.fit(np.ones((8, 3, 5)), np.ones((8, 2)), verbose=0),
            ValueError,
            r"'lstm\w*'.*batch size 8.*Build it with batch_size=1",
        ),
    ),
    "fixed_batch_size_by_hand": (
        lambda: _stateful(8),
        (
            "model",
            lambda m: step(
                m, np.ones((8, 3, 5), "float32"), np.ones((8, 2), "float32")
            ),
            ValueError,
            r"'lstm\w*'.*batch size 8.*Build it with batch_size=1",
        ),
    ),
    "unknown_signature": (
        linear_model,
        (
            "unknown_signature",
            _other_signature,
            RuntimeError,
            r"Received: train_step\(self\).*Install a version of Keras",
        ),
    ),
    "inside_multi_optimizer": (
        linear_model,
        (
            "inside_multi_optimizer",
            _multi,
            NotImplementedError,
            r"Use SGDPlus\(..., examples_per_update=None\) there",
        ),
    ),
    "assigned_inside": (
        lambda: keras.Sequential([keras.Input((5,)), AssignsInBranch()]),
        ("assigned_inside", _fit, NotImplementedError, "run_eagerly=True"),
    ),
    "overridden": (
        linear_model,
        ("overridden", _fit_subclass, NotImplementedError, "examples_per_update=None"),
    ),
    "not_finite": (
        linear_model,
        ("not_finite", _fit_nan, FloatingPointError, "or lower the learning_rate"),
    ),
    "not_per_example": (
        linear_model,
        (
            "not_per_example",
            lambda m: SGDPlus(examples_per_update=None, nonfinite="skip"),
            ValueError,
            "Set examples_per_update to 1 or more",
        ),
    ),
    "built_without": (
        linear_model,
        (
            "built_without",
            _fit_with_late_momentum,
            ValueError,
            r"`momentum` must be set before.*Make a new SGDPlus\(..., momentum=0.9\)",
        ),
    ),
    "no_gradients": (
        _unconnected,
        ("no_gradients", _fit, ValueError, r"Check `loss` in compile\(\)"),
    ),
    "undeclared_state": (
        _forgetful,
        ("undeclared_state", _fit, RuntimeError, "Create them in __init__ or build"),
    ),
}


ERROR_ROWS = [pytest.param(*row, id=key) for key, row in ERRORS.items()]
if not hasattr(keras.optimizers, "MultiOptimizer"):  # Keras before 3.15
    ERROR_ROWS = [row for row in ERROR_ROWS if row.id != "inside_multi_optimizer"]


@pytest.mark.parametrize(("make", "row"), ERROR_ROWS)
def test_error(make: Callable[[], Any], row: Row) -> None:
    _, trigger, error, fix = row
    model = compiled(make())
    before = model.get_weights()
    with pytest.raises(error, match=fix) as raised:
        trigger(model)
    assert type(raised.value) is error
    assert "Received: " in str(raised.value)
    _hook.install()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stateful_model_of_batch_size_one_works(engagements: list[str]) -> None:
    model = compiled(_stateful(1))
    x, y = np.ones((4, 3, 5)), np.ones((4, 2))
    model.fit(x, y, batch_size=4, verbose=0)
    assert set(engagements) == {model.name}
    assert int(model.optimizer.iterations) == 4


def test_fixed_batch_size_works_in_groups_of_it(engagements: list[str]) -> None:
    model = compiled(_stateful(8), plus={"examples_per_update": 8})
    x, y = np.ones((16, 3, 5)), np.ones((16, 2))
    model.fit(x, y, batch_size=16, verbose=0)
    assert set(engagements) == {model.name}
    assert int(model.optimizer.iterations) == 2


_REPLICAS = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
from keras_sgd_plus import SGDPlus

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for k in (1, None):
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(SGDPlus(examples_per_update=k), loss="mse")
    before = model.get_weights()[0]
    try:
        model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    except NotImplementedError as error:
        assert k == 1
        assert (model.get_weights()[0] == before).all()
        print(error)
    else:
        assert k is None
        assert int(model.optimizer.iterations.numpy()) == 2
"""


def test_several_replicas() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _REPLICAS],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "with 2 replicas. Use examples_per_update=None" in run.stdout


# Warnings: once each


def _lonely_norm() -> Any:
    norm = layers.BatchNormalization(name="lonely")
    return keras.Sequential([keras.Input((5,)), norm, layers.Dense(2)])


def _frozen_norm() -> Any:
    model = _lonely_norm()
    model.get_layer("lonely").trainable = False
    return model


def _spatial_norm() -> Any:
    norm, flat = layers.BatchNormalization(), layers.Flatten()
    shape = layers.Reshape((5, 1))
    return keras.Sequential([keras.Input((5,)), shape, norm, flat, layers.Dense(2)])


def _fit_twice(model: Any, **kwargs: Any) -> None:
    _fit(model, batch_size=3, **kwargs)
    _fit(model, batch_size=4, epochs=2, **kwargs)  # traced anew, twice


NORM = "Replace it with LayerNormalization or GroupNormalization"


def test_lonely_batch_normalization_warns_once() -> None:
    model = compiled(_lonely_norm())
    texts = caught_by(lambda: _fit_twice(model), NORM)
    assert len(texts) == 1
    assert "'lonely'" in texts[0]
    assert "layer.trainable = False" in texts[0]


@pytest.mark.parametrize(
    ("make", "plus"),
    [
        (_frozen_norm, {}),
        (_spatial_norm, {}),
        (_lonely_norm, {"examples_per_update": 3}),
        (_lonely_norm, {"examples_per_update": None}),
    ],
    ids=["frozen", "spatial", "groups", "stock"],
)
def test_other_batch_normalization_is_silent(make: Any, plus: dict[str, Any]) -> None:
    model = compiled(make(), plus=plus)
    assert caught_by(lambda: _fit(model), NORM) == []
    assert int(model.optimizer.iterations) > 0


def _weighted_mean() -> Any:
    return keras.losses.MeanSquaredError(
        reduction="mean_with_sample_weight", name="odd"
    )


REDUCTION = 'Use reduction="sum_over_batch_size"'


def test_vanishing_sample_weights_warn_once() -> None:
    model = compiled(loss=_weighted_mean())
    texts = caught_by(lambda: _fit_twice(model, sample_weight=WEIGHTS), REDUCTION)
    assert len(texts) == 1
    assert "'odd'" in texts[0]


@pytest.mark.parametrize(
    ("loss", "weights"),
    [(_weighted_mean(), None), (keras.losses.MeanSquaredError(), WEIGHTS)],
    ids=["no_weights", "default_reduction"],
)
def test_sample_weights_that_count_are_silent(loss: Any, weights: Any) -> None:
    model = compiled(loss=loss)
    assert caught_by(lambda: _fit(model, sample_weight=weights), REDUCTION) == []


def test_missing_gradients_warn_as_keras_does() -> None:
    model = compiled(_partly_connected())
    before = model.get_weights()
    texts = caught_by(lambda: _fit(model), "do not exist for variables")
    assert texts
    assert all("check `loss` in compile()" in text for text in texts)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(before, model.get_weights(), strict=True)
    ]
    assert moved == [True, True, False, False]


def test_bypassed() -> None:
    class ByTape(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x))
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = compiled(ByTape([keras.Input((5,)), layers.Dense(2)]))
    assert len(caught_by(lambda: _fit(model), "Return self.optimizer.train_step")) == 1


def _xla_model(operation: Any, in_loss: bool) -> Any:
    keras.utils.set_random_seed(1)
    body = [layers.Dense(3), layers.Dense(2)]
    if in_loss:

        def loss(y: Any, y_pred: Any) -> Any:
            return tf.reduce_mean(tf.square(operation(y_pred) - y), -1)

        return keras.Sequential([keras.Input((5,)), *body]), loss
    body.insert(1, Printing(operation))
    return keras.Sequential([keras.Input((5,)), *body]), "mse"


@pytest.mark.parametrize("in_loss", [False, True], ids=["layer", "loss"])
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (tf_print, "StringFormat"),  # the first of the two that tf.print is made of
        (tf_numpy_function, "PyFunc"),
        (tf_strings, "AsString"),
    ],
    ids=["print", "numpy_function", "strings"],
)
def test_refusal_of_xla_names_the_operation(
    operation: Any,
    name: str,
    in_loss: bool,
    engagements: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tf, "print", _printer(tf.print, tmp_path / "printed"))
    weights, texts = [], []
    for jit_compile in ("auto", False):
        layer, loss = _xla_model(operation, in_loss)
        plus = {"jit_compile": jit_compile}
        model = compiled(layer, plus=plus, loss=loss)
        match = "SGDPlus(..., jit_compile=False)"
        texts.append(caught_by(lambda: _fit(model, epochs=2), match))  # noqa: B023
        assert int(model.optimizer.iterations) == 12
        weights.append(model.get_weights())
    warned, silent = texts
    assert (len(warned), silent) == (1, [])
    assert name in warned[0]
    assert len(engagements) >= 2
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def _printer(original: Any, path: Path) -> Any:
    return lambda *what, **_: original(*what, output_stream=f"file://{path}")


def _any_length() -> Any:
    x = keras.Input((None, 2))
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def _sequences(lengths: Any) -> Any:
    def generate() -> Any:
        for length in lengths:
            yield np.ones((2, length, 2), "float32"), np.ones((2, 2), "float32")

    signature = (
        tf.TensorSpec((None, None, 2), tf.float32),
        tf.TensorSpec((None, 2), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(lengths)))


MANY = "Pad the examples to a few lengths"


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_many_signatures_warn_once(by_hand: bool) -> None:
    model = compiled(_any_length(), plus={"jit_compile": "auto"})

    def train(first: int, last: int) -> None:
        data = _sequences(range(first, last))
        if by_hand:
            for x, y in data:
                step(model, x, y)
        else:
            stream(model, data)

    assert caught_by(lambda: train(1, 9), MANY) == []  # 8 lengths
    texts = caught_by(lambda: train(9, 10), MANY)
    assert len(texts) == 1
    assert repr(model.name) in texts[0]
    assert "9 different shapes" in texts[0]
    assert caught_by(lambda: train(9, 12), MANY) == []
    assert int(model.optimizer.iterations) == 2 * (8 + 1 + 3)


def test_many_signatures_without_xla_are_silent() -> None:
    model = compiled(_any_length(), plus={"jit_compile": False})
    data = _sequences(range(1, 12))
    assert caught_by(lambda: stream(model, data), MANY) == []


UNEVEN = "Use a batch_size that"


@pytest.mark.parametrize(
    ("batch_size", "numbers"),
    [
        (4, "after 4 examples with a group of 1"),  # batches of 4 and 2, groups of 3
        (2, "after 2 examples with a group of 2"),  # smaller than a group
    ],
)
def test_uneven_groups_warn_once(batch_size: int, numbers: str) -> None:
    model = compiled(plus={"examples_per_update": 3})
    run = lambda: _fit(model, batch_size=batch_size, epochs=2)  # noqa: E731
    texts = caught_by(run, UNEVEN)
    assert len(texts) == 1
    assert "examples_per_update=3" in texts[0]
    assert numbers in texts[0]
    assert caught_by(run, UNEVEN) == []


@pytest.mark.parametrize("batch_size", [3, 6])
@pytest.mark.parametrize("k", [1, 3])
def test_even_groups_are_silent(k: int, batch_size: int) -> None:
    model = compiled(plus={"examples_per_update": k})
    assert caught_by(lambda: _fit(model, batch_size=batch_size), UNEVEN) == []


def test_short_last_batch_is_silent() -> None:
    model = compiled(plus={"examples_per_update": 2})

    def run() -> None:
        model.fit(X[:5], Y[:5], batch_size=4, epochs=2, verbose=0)

    assert caught_by(run, UNEVEN) == []
    assert int(model.optimizer.iterations) == 2 * 3


# The table is complete

ELSEWHERE = {
    "strategy": test_several_replicas,
    "doubts": test_lonely_batch_normalization_warns_once,
    "missing_gradients": test_missing_gradients_warn_as_keras_does,
    "bypassed": test_bypassed,
    "without_xla": test_refusal_of_xla_names_the_operation,
    "xla_reason": test_refusal_of_xla_names_the_operation,
    "many_signatures": test_many_signatures_warn_once,
    "uneven_groups": test_uneven_groups_warn_once,
    "skipped": test_warns_once_per_fit_and_forgets_the_last,
    **dict.fromkeys(
        (
            "can_resume",
            "directory",
            "not_built",
            "other_save",
            "other_steps",
            "positive_int",
            "replayable",
            "same_length",
        ),
        test_refused,
    ),
}


def test_every_message_has_a_row() -> None:
    written = {
        name
        for module in (_checks, _messages)
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    tested = {check for check, *_ in ARGUMENTS}
    tested |= {check for check, *_ in BATCHES.values()}
    tested |= {row[0] for _, row in ERRORS.values()}
    assert tested | set(ELSEWHERE) == written
