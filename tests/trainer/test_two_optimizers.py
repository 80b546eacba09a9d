"""`MultiOptimizer` may not hold SGDPlus; one train step may use two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.messages import (
    ErrorRow,
    Row,
    assert_refused,
    error_rows,
)
from tests.support.steps import (
    GIVEN,
    MOMENTUM,
    PLAIN,
    SGD,
    assert_close,
    data,
    fit,
    state_of,
    trained,
)
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import linear_model


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
@pytest.mark.parametrize("run_eagerly", [False, *matrix(True)], ids=["graph", "eager"])
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
@pytest.mark.parametrize("select", tiered_rows(SELECTORS, "map"))
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
        self.optimizers = [SGDPlus(**PLAIN), SGDPlus(**{**PLAIN, "momentum": 0.5})]
        for part, optimizer in zip((self.one, self.two), self.optimizers, strict=True):
            # If a part was compiled with another optimizer, the caller's counts.
            part.compile(optimizer if compile_parts else "adam", loss="mse")

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))

    def train_step(self, data: Any) -> Any:
        x, y = data
        first = self.optimizers[0].train_step(self.one, (x, y))
        second = self.optimizers[1].train_step(self.two, (x, -y))
        return {"one": first["loss"], "two": second["loss"]}


@pytest.mark.parametrize(
    "compile_parts", [True, *matrix(False)], ids=["owned", "borrowed"]
)
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


class Adversaries(keras.Model):
    """The forger's half of a GAN: a generator that learns through a frozen judge."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.generator = linear_model()
        self.judge = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        self.forger = keras.Sequential([self.generator, self.judge])
        self.forger.compile(optimizer, loss="mse")

    def train_step(self, data: Any) -> Any:
        self.judge.trainable = False
        logs = self.forger.optimizer.train_step(self.forger, data)
        self.judge.trainable = True
        return logs


def test_a_generator_learns_through_a_frozen_judge(engagements: list[str]) -> None:
    keras.utils.set_random_seed(1)
    ours = Adversaries(SGDPlus(**PLAIN))
    ours.compile()
    fit(ours)
    keras.utils.set_random_seed(1)
    theirs = Adversaries(SGD(**MOMENTUM))
    before = theirs.judge.get_weights()
    theirs.judge.trainable = False
    theirs.forger.fit(*data(), batch_size=1, shuffle=False, verbose=0)
    assert set(engagements) == {ours.forger.name}
    pairs = [(a.generator, a.forger.optimizer) for a in (ours, theirs)]
    assert_close(*(state_of(*pair) for pair in pairs))
    for a, b in zip(ours.judge.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours.judge.trainable_variables


def _multi(model: Any) -> None:
    inside = keras.optimizers.OptimizerMap(SGDPlus())
    model.compile(keras.optimizers.MultiOptimizer(inside), loss="mse")
    fit(model)


ERRORS: dict[str, ErrorRow] = {
    "inside_multi_optimizer": (
        linear_model,
        (
            "inside_multi_optimizer",
            _multi,
            NotImplementedError,
            r"Use SGDPlus\(..., examples_per_update=None\) there",
        ),
    ),
}


@needs_multi_optimizer
@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)
