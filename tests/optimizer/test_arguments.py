"""The constructor takes each argument, or refuses it by name and says the fix."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import inverse_time
from tests.support.internals import settings
from tests.support.messages import (
    ErrorRow,
    Row,
    assert_refused,
    error_rows,
)
from tests.support.twins import linear_model

SGD = keras.optimizers.SGD
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
        "max_loss_fraction",
        "max_loss_fraction",
        "Use 1.0 for data without noise",
        ["1", True, np.True_, 1j, TWO],
        [0, -0.5, 1.5, NAN, INF],
    ),
    *_rows(
        "learning_rate",
        "learning_rate",
        SCHEDULE,
        [inverse_time, keras.optimizers.schedules.ExponentialDecay, str],
        [NAN, -INF, np.float64(INF), 1e39, -1e39, HUGE],  # infinite in float32
    ),
    *_rows("momentum", "momentum", "Use 0.9, say", [], [NAN]),
    *_rows(
        "number", "weight_decay", "Use 1e-4", NO_NUMBER, [NAN, INF, -INF, 1e39, HUGE]
    ),
    *_rows(
        "number",
        "clipnorm",
        "Use 1.0",
        ["1", {"a": 1}, TWO, tf.Variable(1.0)],
        [INF, 1e39],
    ),
    *_rows("number", "clipvalue", "Use 0.5", ["0.5", b"1", 1j, TWO], [HUGE]),
    *_rows("number", "global_clipnorm", "Use 1.0", ["1", 1j, TWO], [INF, HUGE]),
    *_rows("number", "ema_momentum", "Use 0.99", [None, *NO_NUMBER], [NAN], **EMA),
    *_rows(
        "number",
        "loss_scale_factor",
        "Use 1024.0",
        NO_NUMBER,
        [0, False, NAN, INF, 1e39],
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
    shown = f"{shown}." if len(shown) <= 200 else f"{shown[:200]}...{shown[-1]}."
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


# A scalar of NumPy or TensorFlow, and the number that the optimizer keeps
SCALARS: dict[str, tuple[Any, Any]] = {
    "examples_per_update": (np.int64(3), 3),
    "seed": (np.uint8(5), 5),
    "learning_rate": (1, 1.0),
    "momentum": (np.float32(0.5), 0.5),
    "jit_compile": (np.False_, False),
    "max_loss_fraction": (np.float32(0.5), 0.5),
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


def test_a_rate_that_float64_holds() -> None:
    keras.config.set_floatx("float64")
    assert float(SGDPlus(1e39).learning_rate.numpy()) == 1e39


def test_a_live_rate_is_finite_too() -> None:
    optimizer = SGDPlus(1)
    for value in (1e39, np.float64(-1e39), tf.constant(1e39, tf.float64)):
        with pytest.raises(ValueError, match="Use 0.01, say"):
            optimizer.learning_rate = value
    assert float(optimizer.learning_rate.numpy()) == 1.0


REPRS: dict[str, Any] = {
    "SGDPlus()": lambda: SGDPlus(),
    "SGDPlus(learning_rate=1.0, momentum=0.9)": lambda: SGDPlus(1, 0.9),
    "SGDPlus(learning_rate=0.001, order='given', seed=3)": (
        lambda: SGDPlus(0.001, order="given", seed=3)
    ),
    "SGDPlus(learning_rate=<CosineDecay>, name='mine', examples_per_update=None)": (
        lambda: SGDPlus(
            keras.optimizers.schedules.CosineDecay(0.1, 10),
            name="mine",
            examples_per_update=None,
        )
    ),
    "SGDPlus(clipnorm=1.0, max_loss_fraction=0.3)": (
        lambda: SGDPlus(clipnorm=1, max_loss_fraction=0.3)
    ),
    "SGDPlus(learning_rate=?)": lambda: SGDPlus.__new__(SGDPlus),
}


@pytest.mark.parametrize("shown", REPRS)
def test_repr_shows_what_differs_from_the_defaults(shown: str) -> None:
    optimizer = REPRS[shown]()
    assert repr(optimizer) == shown
    if "<" not in shown and "?" not in shown:
        again = eval(shown, {"SGDPlus": SGDPlus})
        config, other = optimizer.get_config(), again.get_config()
        assert {**config, "name": ""} == {**other, "name": ""}


def test_repr_never_raises() -> None:
    assert "weight_decay=<" in repr(SGDPlus(weight_decay=tf.Variable(0.5)))
    shown: list[str] = []
    optimizer = SGDPlus(0.5)
    tf.function(lambda: shown.append(repr(optimizer)))()
    assert shown == ["SGDPlus(learning_rate=?)"]


def test_repr_of_a_live_optimizer() -> None:
    optimizer = SGDPlus()
    optimizer.learning_rate, optimizer.momentum = 0.5, 0.25
    assert repr(optimizer) == "SGDPlus(learning_rate=0.5, momentum=0.25)"


@pytest.mark.parametrize("name", ["weight_decay", "loss_scale_factor"])
def test_variable_is_kept(name: str) -> None:
    variable = tf.Variable(0.5)
    assert getattr(SGDPlus(**{name: variable}), name) is variable


def test_a_seed_of_none_is_derived_on_a_live_optimizer_too() -> None:
    optimizer = SGDPlus(seed=3)
    optimizer.seed = None
    assert optimizer.seed == SGDPlus().seed
    assert type(optimizer.seed) is int
    keras.utils.set_random_seed(5)
    assert SGDPlus().seed != optimizer.seed


def test_new_arguments_are_keyword_only() -> None:
    thirteen = list(inspect.signature(SGD.__init__).parameters)[1:14]
    ours = inspect.signature(SGDPlus.__init__).parameters
    assert list(ours)[1:14] == thirteen
    new = ("examples_per_update", "order", "seed", "nonfinite", "jit_compile")
    new = (*new, "max_loss_fraction")
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in new)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": True},
        {"learning_rate": None},
        {"momentum": 2},
        {"momentum": True},
        {"momentum": -0.1},
        {"momentum": 1.1},
        {"clipnorm": 1.0, "clipvalue": 1.0},
        {"clipnorm": 1.0, "global_clipnorm": 1.0},
        {"use_ema": True, "ema_momentum": 1.1},
        {"use_ema": True, "ema_overwrite_frequency": -1},
        {"gradient_accumulation_steps": 1},
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


def fail_backend() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "jax")
        SGDPlus()


ERRORS: dict[str, ErrorRow] = {
    "other_backend": (
        linear_model,
        (
            "backend",
            lambda m: fail_backend(),
            RuntimeError,
            "Received.*'jax'. Set KERAS_BACKEND=tensorflow before importing keras",
        ),
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
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)


def test_every_argument_has_a_message_and_a_row() -> None:
    given = {next(iter(arguments)) for _, arguments, _, _ in ARGUMENTS}
    assert given == set(settings.ARGUMENTS)
    for_keras = {"name", "kwargs"}  # Keras names these itself
    accepted = set(inspect.signature(SGDPlus.__init__).parameters) - {"self"}
    assert accepted - for_keras == given
