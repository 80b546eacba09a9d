"""The loop takes every structure of inputs, outputs and targets that Keras takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.support.columns import CROSSENTROPY, RNG, N, columns, target
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import assert_engaged, assert_same, train_pair


def _merged(inputs: Any) -> Any:
    return layers.Concatenate()(keras.tree.flatten(inputs))


def _dict_in() -> keras.Model:
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((3,), name="a")}
    return keras.Model(inputs, layers.Dense(1)(_merged(inputs)))


def _list_in() -> keras.Model:
    inputs = [keras.Input((3,)), keras.Input((3,))]
    return keras.Model(inputs, layers.Dense(1)(_merged(inputs)))


def _nested_in() -> keras.Model:
    one, two = keras.Input((3,)), keras.Input((3,))
    inputs = {"deep": [one, (two,)], "flat": keras.Input((3,), name="flat")}
    return keras.Model(inputs, layers.Dense(1)(_merged(inputs)))


class TupleIn(keras.Model):
    """Takes a pair, as only a subclassed model can without a functional graph."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(1), layers.Dense(1)

    def call(self, pair: Any) -> Any:
        left, right = pair
        return self.left(left) - self.right(right)


def _pick_in(columns: Any) -> dict[str, tuple[Callable[[], keras.Model], Any]]:
    a, b, c = columns
    return {
        "dict": (_dict_in, {"a": a, "b": b}),
        "list": (_list_in, [a, b]),
        "tuple_to_functional": (_list_in, (a, b)),
        "tuple_to_subclass": (TupleIn, (a, b)),
        "nested": (_nested_in, {"flat": c, "deep": [a, (b,)]}),
    }


INPUTS = _pick_in(columns(3))


@pytest.mark.parametrize("make, x", tiered_rows(INPUTS, "nested", unpack=True))
def test_input_structure(make: Any, x: Any, engagements: list[str]) -> None:
    pair = train_pair(make, x, target(keras.tree.flatten(x)))
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class WithOptional(layers.Layer):
    """Adds a second input if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def build(self, a_shape: Any, b_shape: Any = None) -> None:
        self.dense.build(a_shape)

    def call(self, a: Any, b: Any = None) -> Any:
        return self.dense(a) if b is None else self.dense(a) + b

    def compute_output_shape(self, a_shape: Any, b_shape: Any = None) -> Any:
        return a_shape


def _optional_in() -> keras.Model:
    a = keras.Input((3,), name="a")
    b = keras.Input((3,), name="b", optional=True)
    hidden = WithOptional()(a, b)
    return keras.Model({"a": a, "b": b}, layers.Dense(1)(hidden))


@pytest.mark.parametrize("given", [False, *matrix(True)], ids=["none", "given"])
def test_optional_input(given: bool, engagements: list[str]) -> None:
    a, b = columns(2)
    x = {"a": a, "b": b if given else None}
    pair = train_pair(_optional_in, x, target([a]))
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def _two_outputs(as_dict: bool) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        x = keras.Input((3,))
        hidden = layers.Dense(4, activation="tanh")(x)
        size = layers.Dense(1, name="size")(hidden)
        kind = layers.Dense(3, activation="softmax", name="kind")(hidden)
        outputs = {"size": size, "kind": kind} if as_dict else [size, kind]
        return keras.Model(x, outputs)

    return make


OUTPUTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "list": (
        False,
        {
            "loss": ["mse", CROSSENTROPY],
            "loss_weights": [2.0, 0.5],
            "metrics": [["mae"], ["accuracy"]],
        },
    ),
    "list_named": (
        False,
        {
            "loss": {"size": "mse", "kind": CROSSENTROPY},
            "loss_weights": {"size": 0.3, "kind": 2.0},
        },
    ),
    "dict": (
        True,
        {
            "loss": {"size": "mse", "kind": CROSSENTROPY},
            "loss_weights": {"size": 0.3, "kind": 2.0},
            "metrics": {"kind": ["accuracy"]},
            "weighted_metrics": {"size": ["mae"]},
        },
    ),
}


@pytest.mark.matrix
@pytest.mark.parametrize("as_dict, compile", tiered_rows(OUTPUTS, unpack=True))
def test_several_outputs(
    as_dict: bool, compile: dict[str, Any], engagements: list[str]
) -> None:
    (x,) = columns(1)
    size, kind = target([x]), (target([x], 3).argmax(1)).astype("int32")
    y: Any = {"size": size, "kind": kind} if as_dict else [size, kind]
    pair = train_pair(_two_outputs(as_dict), x, y, compile=compile)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    assert {"loss", "size_loss", "kind_loss"} <= pair.our_logs.keys()


@pytest.mark.matrix
def test_weights_per_output(engagements: list[str]) -> None:
    (x,) = columns(1)
    y = {"size": target([x]), "kind": target([x], 3).argmax(1)}
    weights = {
        "size": RNG(1).uniform(0, 2, N).astype("float32"),
        "kind": RNG(2).uniform(0, 2, N).astype("float32"),
    }
    compile = OUTPUTS["dict"][1]
    fit = {"sample_weight": weights}
    pair = train_pair(_two_outputs(True), x, y, compile=compile, fit=fit)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


NESTED_LOSSES = {
    "one_loss": "mse",
    "loss_each": {"deep": ["mse", "mae"], "flat": "mse"},
}


@pytest.mark.matrix
@pytest.mark.parametrize("loss", tiered_rows(NESTED_LOSSES))
def test_nested_outputs(loss: Any, engagements: list[str]) -> None:
    def make() -> keras.Model:
        x = keras.Input((3,))
        one, two, three = (layers.Dense(n, name=f"to_{n}")(x) for n in (1, 2, 3))
        return keras.Model(x, {"deep": [one, two], "flat": three})

    (x,) = columns(1)
    y = {"deep": [target([x]), target([x], 2)], "flat": target([x], 3)}
    pair = train_pair(make, x, y, compile={"loss": loss})
    assert_same(pair)
    assert_engaged(pair, engagements, N)


class Reconstruction(layers.Layer):
    """Adds its own loss: how far a bottleneck is from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = layers.Dense(2), layers.Dense(3)

    def call(self, x: Any) -> Any:
        restored = self.up(self.down(x))
        self.add_loss(keras.ops.mean(keras.ops.square(restored - x)))
        return restored


def _without_targets() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, Reconstruction()(x))


@pytest.mark.matrix
def test_no_targets(engagements: list[str]) -> None:
    (x,) = columns(1)
    pair = train_pair(_without_targets, x, compile={"loss": None})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    # The same model goes on in batches by hand.
    for rows in range(0, N, 10):
        pair.ours.reset_metrics()
        pair.theirs.reset_metrics()  # Keras does it at each call since 3.15
        mine = pair.ours.train_on_batch(x[rows : rows + 10])
        theirs = []
        for i in range(rows, rows + 10):
            pair.theirs.reset_metrics()
            theirs.append(pair.theirs.train_on_batch(x[[i]]))
        np.testing.assert_allclose(mine, np.mean(theirs), rtol=2e-5)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
