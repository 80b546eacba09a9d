"""Every argument gets values of every kind: it refuses them by name, or trains.

test_arguments.py has a row for each message.
"""

from __future__ import annotations

import decimal
import fractions
import inspect
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_sgd_plus import SGDPlus
from tests.support.tiers import tiered_keys
from tests.support.twins import dense_data

SGD = keras.optimizers.SGD
ARGUMENTS = [
    name
    for name in inspect.signature(SGDPlus.__init__).parameters
    if name not in ("self", "kwargs")
]
NAN, INF = float("nan"), float("inf")

# Functions make them anew: a generator ends, a variable belongs to one optimizer.
GARBAGE: dict[str, Callable[[], Any]] = {
    **{
        repr(value): lambda value=value: value
        for value in [
            *(
                "0.5",
                "",
                "auto",
                "given",
                "skip",
                "a/b",
                b"1",
                None,
                True,
                False,
                NAN,
                INF,
            ),
            *(-INF, -1.0, -1, 0, 0.0, 0.5, 1, 1.0, 2, 2.0, 2.5, 3, 2**31, 2**70),
            *(1e-300, 1e300, 1j, [], [0.5], (1,), {"a": 1}, {1}, range(3), ..., float),
        ]
    },
    "10**400": lambda: 10**400,
    "object": object,
    "generator": lambda: (i for i in range(1)),
    "function": lambda: lambda: 0.01,
    "function_of_a_step": lambda: lambda step: 0.01,
    "schedule": lambda: keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9),
    "schedule_class": lambda: keras.optimizers.schedules.ExponentialDecay,
    "optimizer": SGD,
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 2),
    "array_0d": lambda: np.array(0.5),
    "array_1": lambda: np.array([0.5]),
    "array_3": lambda: np.array([0.5, 0.25, 0.5]),
    "array_empty": lambda: np.zeros(0),
    "array_of_objects": lambda: np.array([object()]),
    "array_of_text": lambda: np.array(["given", "auto"]),
    "np.float32": lambda: np.float32(0.5),
    "np.float64": lambda: np.float64(0.5),
    "np.nan": lambda: np.float32(NAN),
    "np.int64": lambda: np.int64(3),
    "np.int8": lambda: np.int8(-3),
    "np.uint64": lambda: np.uint64(2**64 - 1),
    "np.bool": lambda: np.bool_(True),
    "np.str": lambda: np.str_("given"),
    "np.datetime64": lambda: np.datetime64("2020-01-01"),
    "tensor": lambda: tf.constant(0.5),
    "tensor_int": lambda: tf.constant(3),
    "tensor_text": lambda: tf.constant("given"),
    "tensor_3": lambda: tf.constant([0.5, 0.25, 0.5]),
    "variable": lambda: tf.Variable(0.5),
    "variable_3": lambda: tf.Variable([0.5, 0.25, 0.5]),
    "keras_variable": lambda: keras.Variable(0.5),
    "keras_tensor": lambda: keras.KerasTensor((1,)),
    "layer": lambda: keras.layers.Dense(1),
}


def arguments_with(name: str, value: Any) -> dict[str, Any]:
    """The garbage, and the arguments that make Keras look at it."""
    more: dict[str, Any] = {name: value}
    if name.startswith("ema_"):
        more["use_ema"] = True
    if name == "nesterov":
        more["momentum"] = 0.5
    return more


def trained(optimizer: Any) -> bool:
    """Whether the weights of a tiny model are finite after a batch."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse")
    x, y = dense_data(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e300 in float32, half a group
        for i in range(2):  # one example at a time, for SGD
            model.train_on_batch(x[i : i + 1], y[i : i + 1])
    optimizer.finalize_variable_values(model.trainable_variables)  # averages
    return all(np.isfinite(w).all() for w in model.get_weights())


def refusal(cls: type, name: str, value: Any) -> tuple[Any, Exception | None]:
    """The optimizer, or the error that it raised."""
    plus = {"jit_compile": False} if cls is SGDPlus else {}
    try:
        return cls(**{**plus, **arguments_with(name, value)}), None
    except Exception as error:
        return None, error


def names(error: Exception, name: str) -> bool:
    """Whether a TypeError or ValueError is about an argument, by its name."""
    about = f"`{name}`|{name}="
    if name == "clipnorm":  # a part of another argument's name
        about = r"`clipnorm`|\bclipnorm="
    return isinstance(error, (TypeError, ValueError)) and bool(
        re.search(about, str(error))
    )


# Each has a kind of its own: a number, a flag, a name, a count, a number beside a flag.
DEFAULT = ("momentum", "order", "examples_per_update")


@pytest.mark.parametrize("name", tiered_keys(ARGUMENTS, *DEFAULT))
def test_garbage_is_refused_by_name_or_trained_with(name: str) -> None:
    unnamed, refused, known = [], set(), set()
    for kind, make in GARBAGE.items():
        optimizer, error = refusal(SGDPlus, name, make())
        if error is not None:
            refused.add(kind)
            if not names(error, name):
                unnamed.append((kind, repr(error)))
            continue
        kept = getattr(optimizer, name, kind)
        is_number = isinstance(kept, (int, float))
        key = (type(kept), kept > 0 if is_number else repr(kept))
        if key in known:
            continue  # a training like one before
        known.add(key)
        try:
            trained(optimizer)
        except Exception as error:
            if not names(error, name):
                unnamed.append((kind, f"in training: {error!r}"[:300]))
    assert unnamed == []
    assert known
    assert "array_3" in refused
    assert len(refused) >= (1 if name in ("nesterov", "use_ema") else 10)


def test_assigned_numpy_integers_train() -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(SGDPlus(jit_compile=False), "mse")
    model.optimizer.examples_per_update = np.int64(2)
    model.optimizer.seed = np.int32(3)
    model.train_on_batch(*dense_data(6))
    assert int(model.optimizer.iterations) == 3


# SGDPlus refuses these, which SGD accepts and misunderstands. (SGD also trains with
# arrays of several numbers, if they happen to broadcast with every weight.)
STRICTER = {
    ("loss_scale_factor", "np.datetime64"),  # days since 1970
    ("gradient_accumulation_steps", "np.uint64"),  # 2**64 - 1, to SGD -1
    ("weight_decay", "1j"),  # SGD drops the imaginary part, and decays by nothing
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ARGUMENTS if hasattr(SGD(), n)])
def test_what_sgd_trains_with_is_not_refused(name: str) -> None:
    differ, common = [], 0
    for kind, make in GARBAGE.items():
        finite = False
        optimizer, _ = refusal(SGD, name, make())
        try:
            finite = optimizer is not None and trained(optimizer)
        except Exception:
            pass
        common += finite
        refused = refusal(SGDPlus, name, make())[0] is None
        if finite and refused and (name, kind) not in STRICTER:
            differ.append(kind)
    assert differ == []
    assert common > 0


VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers()),
        *(st.text(max_size=8), st.binary(max_size=8), st.decimals(), st.fractions()),
        *(st.datetimes(), st.uuids(), st.just(...), st.functions()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
        st.tuples(inner),
    ),
    max_leaves=4,
)


def check_random(name: str, value: Any) -> None:
    optimizer, error = refusal(SGDPlus, name, value)
    if error is not None:
        assert names(error, name), repr(error)
    else:
        json.dumps(optimizer.get_config(), default=repr)
        if not callable(value):  # a function that returns garbage is not called yet
            trained(optimizer)


RANDOM = {"derandomize": True, "deadline": None, "database": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_random_garbage(name: str) -> None:
    @settings(max_examples=100, suppress_health_check=list(HealthCheck), **RANDOM)
    @given(VALUES)
    def run(value: Any) -> None:
        check_random(name, value)

    run()
