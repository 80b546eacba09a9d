"""Every message: what triggers it, its class, and that it says how to fix it."""

from __future__ import annotations

import inspect
import json
import re
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

from keras_sgd_plus import SGDPlus, _arguments, _checks, _hook, _keras, _messages
from tests import test_nonfinite, test_replicas, test_resume, test_workers
from tests.cases import inverse_time
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

Argument = tuple[str, dict[str, Any], type[Exception], str]
EMA = {"use_ema": True}


def _rows(
    check: str, name: str, fix: str, wrong: list[Any], beyond: list[Any], **more: Any
) -> list[Argument]:
    """Rows of values of the wrong kind, and of values out of range."""
    kinds = [(value, TypeError) for value in wrong]
    ranges = [(value, ValueError) for value in beyond]
    return [(check, {name: v, **more}, error, fix) for v, error in kinds + ranges]


NAN, INF, TWO = float("nan"), float("inf"), np.array([0.5, 0.25])
HUGE = 10**400  # no float
SCHEDULE = "Use 0.01, say, or an object of `keras.optimizers.schedules`"
NO_NUMBER: list[Any] = ["0.5", b"1", 1j, [], {"a": 1}, TWO, object, tf.constant("1")]
NO_COUNT: list[Any] = ["2", 2.5, INF, [2], TWO, keras.Variable(2.0)]
ARGUMENTS: list[Argument] = [
    *_rows(
        "examples_per_update",
        "examples_per_update",
        "Use 1 for one",
        [1.5, True, np.True_, "1", np.float64(1)],
        [0, -1, np.int64(0), 2**24 + 1],
    ),
    *_rows(
        "seed",
        "seed",
        "Use seed=None to derive one",
        [1.5, True, np.True_, "7", np.float64(1)],
        [-1, 2**63, np.uint64(2**63)],
    ),
    *_rows(
        "order",
        "order",
        'Use "reshuffle" for',
        [],
        ["shuffle", "Given", "", None, 1, ["given"], np.array(["given"] * 2)],
    ),
    *_rows(
        "nonfinite",
        "nonfinite",
        'Use "skip" to leave out',
        [],
        ["ignore", None, True, ["skip"]],
    ),
    *_rows(
        "jit_compile",
        "jit_compile",
        'Use "auto" for XLA',
        [],
        ["yes", None, 1, 0, np.array(["auto"] * 2), tf.constant("auto")],
    ),
    *_rows(
        "learning_rate",
        "learning_rate",
        SCHEDULE,
        [inverse_time, keras.optimizers.schedules.ExponentialDecay, str],
        [NAN, -INF, np.float64(INF)],
    ),
    *_rows("momentum", "momentum", "Use 0.9, say", [], [NAN]),
    *_rows("number", "weight_decay", "Use 1e-4", NO_NUMBER, [NAN, INF, -INF, HUGE]),
    *_rows(
        "number", "clipnorm", "Use 1.0", ["1", {"a": 1}, TWO, tf.Variable(1.0)], [INF]
    ),
    *_rows("number", "clipvalue", "Use 0.5", ["0.5", b"1", 1j, TWO], [HUGE]),
    *_rows("number", "global_clipnorm", "Use 1.0", ["1", 1j, TWO], [INF, HUGE]),
    *_rows("number", "ema_momentum", "Use 0.99", [None, *NO_NUMBER], [NAN], **EMA),
    *_rows(
        "number", "loss_scale_factor", "Use 1024.0", NO_NUMBER, [0, False, NAN, INF]
    ),
    *_rows("count", "gradient_accumulation_steps", "Use None", NO_COUNT, [2**63, HUGE]),
    *_rows(
        "count", "ema_overwrite_frequency", "Use None", [0.5, *NO_COUNT], [2**63], **EMA
    ),
    *_rows("flag", "nesterov", "Use True or False", [TWO, keras.Variable(1.0)], []),
    *_rows("flag", "use_ema", "Use True or False", [TWO, keras.Variable(1.0)], []),
]


def _id(arguments: dict[str, Any]) -> str:
    name, value = next(iter(arguments.items()))
    shown = repr(value)
    return f"{name}-{shown if len(shown) < 30 else type(value).__name__}"


@pytest.mark.parametrize(
    ("arguments", "error", "fix"),
    [row[1:] for row in ARGUMENTS],
    ids=[_id(row[1]) for row in ARGUMENTS],
)
def test_argument(arguments: dict[str, Any], error: type[Exception], fix: str) -> None:
    with pytest.raises(error, match=re.escape(fix)) as raised:
        SGDPlus(**arguments)
    assert type(raised.value) is error
    name, value = next(iter(arguments.items()))
    assert str(raised.value).startswith(f"`{name}` must be ")
    shown = repr(value)
    shown = f"{shown}." if len(shown) <= 200 else f"{shown[:200]}...."
    assert f"Received: {name}={shown}" in str(raised.value)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_argument_that_cannot_be_shown() -> None:
    for value in (Unprintable(), 10**5000):  # Python prints at most 4,300 digits
        with pytest.raises((TypeError, ValueError), match="`weight_decay` must be"):
            SGDPlus(weight_decay=value)


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


# Scalars of NumPy and TensorFlow: what the optimizer keeps
SCALARS: dict[str, tuple[Any, Any]] = {
    "examples_per_update": (np.int64(3), 3),
    "seed": (np.uint8(5), 5),
    "jit_compile": (np.False_, False),
    "nesterov": (np.True_, True),
    "weight_decay": (np.float32(0.5), 0.5),
    "clipnorm": (np.array(2), 2.0),
    "clipvalue": (tf.constant(0.5), 0.5),
    "global_clipnorm": (np.float64(0.5), 0.5),
    "loss_scale_factor": (np.float16(2), 2.0),
    "use_ema": (np.True_, True),
    "ema_momentum": (np.float32(0.5), 0.5),
    "ema_overwrite_frequency": (np.int32(2), 2),
    "gradient_accumulation_steps": (np.array([2]), 2),
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalar_is_kept_as_a_python_number(name: str) -> None:
    given, kept = SCALARS[name]
    more = EMA if name.startswith("ema_") else {}
    config = SGDPlus(**{name: given}, **more).get_config()
    assert type(config[name]) is type(kept)
    assert config[name] == kept
    assert json.loads(json.dumps(config))[name] == kept


@pytest.mark.parametrize("name", ["weight_decay", "loss_scale_factor"])
def test_variable_is_kept(name: str) -> None:
    variable = tf.Variable(0.5)
    assert getattr(SGDPlus(**{name: variable}), name) is variable


def test_new_arguments_are_keyword_only() -> None:
    thirteen = list(inspect.signature(SGD.__init__).parameters)[1:14]
    ours = inspect.signature(SGDPlus.__init__).parameters
    assert list(ours)[1:14] == thirteen
    new = ("examples_per_update", "order", "seed", "nonfinite", "jit_compile")
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
        {"use_ema": True, "ema_overwrite_frequency": -1},
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
    "numbers_as_objects": (
        "rectangular",
        lambda m: step(m, X.astype(object), Y),
        ValueError,
        r'Convert numbers with .astype\("float32"\)',
    ),
    **{
        f"text_{name}": ("kinds", trigger, TypeError, f"`{name}` must be numbers.*Map")
        for name, trigger in {
            "x": lambda m: step(m, X.astype(str), Y),
            "y": lambda m: m.train_on_batch(X, Y.astype(bytes)),
            "sample_weight": lambda m: step(m, X, Y, WEIGHTS.astype(str)),
        }.items()
    },
    "text_in_fit": (
        "kinds",
        lambda m: stream(m, tf.data.Dataset.from_tensors((X, tf.as_string(Y)))),
        TypeError,
        "np.unique",
    ),
    "no_target": (
        "kinds",
        lambda m: m.train_on_batch(X),
        ValueError,
        "`y` must be given.*or compile without a loss",
    ),
    "no_target_in_fit": (
        "kinds",
        lambda m: _fit_x(m),
        ValueError,
        "`y` must be given.*or compile without a loss",
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


def test_what_casts_nothing_may_be_text_or_missing(engagements: list[str]) -> None:
    # An input declared as text, and a loss that does not go by Keras's own way.
    class Lengths(keras.losses.Loss):
        def __call__(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return tf.reduce_mean(tf.cast(tf.strings.length(y), tf.float32) - y_pred)

        def call(self, y: Any, y_pred: Any) -> Any:
            raise NotImplementedError

    class OwnLoss(keras.Sequential):
        def compute_loss(self, x: Any, y: Any, y_pred: Any, *more: Any) -> Any:
            return tf.reduce_mean(tf.square(y_pred))

    words = np.array([["a", "bc", "def", "", "e"]] * 6)
    body = [
        keras.Input((5,), dtype="string"),
        layers.StringLookup(vocabulary=["a", "e"], output_mode="multi_hot"),
        layers.Dense(2),
    ]
    for model, y in [
        (compiled(keras.Sequential(body), loss=Lengths()), words[:, :2]),
        (compiled(OwnLoss(body)), words),
        (compiled(OwnLoss(body)), None),
    ]:
        step(model, words, y)
        assert int(model.optimizer.iterations) == 6
    assert len(engagements) >= 3


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_errors_of_keras_get_a_note_with_the_batch(by_hand: bool) -> None:
    # The model sees one example at a time: a shape in Keras's words is not the user's.
    model = compiled()
    with pytest.raises(ValueError, match="equal, but are 3 and 2") as raised:
        y = np.ones((6, 3), "float32")
        step(model, X, y) if by_hand else model.train_on_batch(X, y)
    (note,) = raised.value.__notes__
    assert "x: (6, 5) float32, y: (6, 3) float32. It feeds the model 1 example" in note


def test_a_batch_of_another_rank_is_explained() -> None:
    # TensorFlow relaxes the shape of what came in two ranks, for all later batches.
    model = compiled()
    model.train_on_batch(X, Y[:, :, None])  # broadcast, as by Keras
    with pytest.raises(ValueError, match="compile the model anew"):
        model.train_on_batch(X, Y)
    model.compile(model.optimizer, "mse")
    model.train_on_batch(X, Y)
    assert int(model.optimizer.iterations) == 12


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


def _fit_x(model: Any) -> Any:
    return model.fit(X, verbose=0)


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
    "replicas": test_replicas.test_refused,
    "same_saves": test_workers.test_workers_must_share_the_directory,
    "eager_replicas": test_replicas.test_by_hand,
    "doubts": test_lonely_batch_normalization_warns_once,
    "missing_gradients": test_missing_gradients_warn_as_keras_does,
    "bypassed": test_bypassed,
    "without_xla": test_refusal_of_xla_names_the_operation,
    "xla_reason": test_refusal_of_xla_names_the_operation,
    "many_signatures": test_many_signatures_warn_once,
    "uneven_groups": test_uneven_groups_warn_once,
    "skipped": test_nonfinite.test_warns_once_per_fit_and_forgets_the_last,
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
        test_resume.test_refused,
    ),
    "batch": test_errors_of_keras_get_a_note_with_the_batch,
}
# Texts of `_messages` that a row above reads through a function of `_checks`
ROW_OF = {
    "other_backend": ERRORS["other_backend"],
    "other_batch_size": ERRORS["fixed_batch_size"],
    "nothing": BATCHES["nothing"],
    "no_batch_axis": BATCHES["no_axis_x"],
    "lengths": BATCHES["y_shorter"],
    "empty": BATCHES["empty"],
    "objects": BATCHES["ragged_rows"],
    "text": BATCHES["text_x"],
    "no_target": BATCHES["no_target"],
}


def test_every_message_has_a_row() -> None:
    written = {
        name
        for module in (_arguments, _checks, _messages)
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    tested = {check for check, *_ in ARGUMENTS}
    tested |= {check for check, *_ in BATCHES.values()}
    tested |= {row[0] for _, row in ERRORS.values()}
    assert tested | set(ELSEWHERE) | set(ROW_OF) == written


def test_every_argument_has_a_message_and_a_row() -> None:
    given = {next(iter(arguments)) for _, arguments, _, _ in ARGUMENTS}
    assert given == set(_arguments._ARGUMENTS)
    for_keras = {"name", "kwargs"}  # which it names itself
    accepted = set(inspect.signature(SGDPlus.__init__).parameters) - {"self"}
    assert accepted - for_keras == given
