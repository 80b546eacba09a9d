"""Tables that move in parts end as with Keras's SGD, which moves all of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.compare import difference, snapshot
from tests.support.internals import tracing
from tests.support.tables import (
    ALL,
    DECAY,
    LENGTH,
    MOMENTUM,
    UPDATES,
    Lookup,
    WithTable,
    bag,
    embedding,
    headed,
    ids,
    labels,
    two,
)
from tests.support.tiers import tiered_keys
from tests.support.twins import assert_engaged, train_pair


def _shared() -> keras.Model:
    inputs = [keras.Input((LENGTH,), dtype="int32") for _ in range(2)]
    table = embedding()
    pooled = [layers.GlobalAveragePooling1D()(table(each)) for each in inputs]
    return keras.Model(inputs, layers.Dense(4)(layers.Subtract()(pooled)))


def _masked() -> keras.Model:
    stack = [embedding(mask_zero=True), layers.LSTM(3), layers.Dense(4)]
    return keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *stack])


def _nested() -> keras.Model:
    return headed(bag())


def _own_layer() -> keras.Model:
    return headed(Lookup())


class _Chosen(WithTable):
    """Looks up ids that depend on rows of the same table."""

    def call(self, ids: Any) -> Any:
        rows = self.table(ids)
        best = keras.ops.argmax(keras.ops.sum(rows, axis=-1), axis=-1)
        return keras.ops.mean(rows, axis=1) + self.table(best * 3 + 1)


def _chosen() -> keras.Model:
    return headed(_Chosen())


# Arguments of the optimizer, the model, changes of the training, number of tables.
CASES: dict[str, tuple[Any, Callable[[], Any], Any, int]] = {
    "momentum": (MOMENTUM, bag, {}, 1),
    "nesterov": ({**MOMENTUM, "nesterov": True}, bag, {}, 1),
    "momentum one": ({"momentum": 1.0, "learning_rate": 0.001}, bag, {}, 1),
    "weight decay": ({**MOMENTUM, "weight_decay": 0.05}, bag, {}, 1),
    "weight decay alone": ({"weight_decay": 0.05}, bag, {}, 1),
    "momentum is a": (
        {"learning_rate": 0.25, "momentum": 0.75, "weight_decay": 1.0},
        bag,
        {},
        1,
    ),
    "clipnorm": ({**MOMENTUM, "clipnorm": 0.01}, bag, {}, 1),
    "global_clipnorm": ({**MOMENTUM, "global_clipnorm": 0.02}, bag, {}, 1),
    "clipvalue": ({**MOMENTUM, "clipvalue": 0.001}, bag, {}, 1),
    "schedule": (
        lambda: {"learning_rate": DECAY(0.05, 90, 0.5), **MOMENTUM},
        bag,
        {},
        1,
    ),
    "schedule and decay": (
        lambda: {"learning_rate": DECAY(0.05, 90, 0.5), **ALL},
        bag,
        {},
        1,
    ),
    "all": (ALL, bag, {}, 1),
    "one large batch": (ALL, bag, {"our_fit": {"batch_size": UPDATES}}, 1),
    "two tables": (ALL, two, {"x": [ids(), ids(seed=1)]}, 2),
    "shared table": (ALL, _shared, {"x": [ids(), ids(seed=1)]}, 1),
    "mask": (ALL, _masked, {}, 1),
    "nested": (ALL, _nested, {}, 1),
    "own layer": (ALL, _own_layer, {}, 1),
    "ids from rows": (ALL, _chosen, {}, 1),
    "negative ids": (ALL, bag, {"x": -1 - ids() % 1_000}, 1),
    "skip": (ALL, bag, {"plus": {"order": "given", "nonfinite": "skip"}}, 1),
}


def _pair(name: str, **changes: Any) -> Any:
    sgd, model, settings, _ = CASES[name]
    loss = keras.losses.SparseCategoricalCrossentropy
    arguments: dict[str, Any] = {
        "x": ids(),
        "y": labels(),
        "sgd": sgd if callable(sgd) else {"learning_rate": 0.05, **sgd},
        "compile": lambda: {"loss": loss(from_logits=True)},
        "our_fit": {"batch_size": 128},
        **settings,
        **changes,
    }
    return train_pair(model, **arguments)


@pytest.mark.parametrize("name", tiered_keys(CASES, "momentum"))
def test_equals_keras(name: str, tables: list[int], engagements: list[str]) -> None:
    pair = _pair(name)
    assert_engaged(pair, engagements, UPDATES)
    assert set(tables) == {CASES[name][3]}
    assert pair.difference().relative <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "nesterov",
        "all",
        "schedule and decay",
        "two tables",
        "momentum is a",
    ],
)
@pytest.mark.matrix
def test_equals_keras_in_float64(name: str, tables: list[int]) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    pair = _pair(name)
    assert set(tables) == {CASES[name][3]}
    assert pair.difference().relative <= 1e-12


@pytest.mark.matrix
def test_epochs_follow_each_other(tables: list[int]) -> None:
    """A batch begins with every row up to date."""
    pair = _pair("all", our_fit={"batch_size": 99}, fit={"epochs": 2})
    assert set(tables) == {1}
    assert pair.difference().relative <= 1e-5


@pytest.mark.matrix
def test_mixed_precision(tables: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as close to Keras as moving whole tables is; float16 rounds both."""
    keras.config.set_dtype_policy("mixed_float16")
    in_parts = _pair("all").difference().relative
    assert set(tables) == {1}
    monkeypatch.setenv(tracing.SWITCH, "0")
    whole = _pair("all").difference().relative
    assert in_parts <= max(3 * whole, 1e-5)


@pytest.mark.matrix
def test_decay_may_leave_a_table_out(tables: list[int]) -> None:
    """One of two tables decays: each has its own clock."""
    found, before = [], None
    for cls in (SGDPlus, keras.optimizers.SGD):
        keras.utils.set_random_seed(1)
        model = two()
        optimizer = cls(0.05, **ALL)
        optimizer.exclude_from_weight_decay(var_list=[model.trainable_variables[0]])
        if cls is SGDPlus:
            optimizer.order = "given"
        model.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        before = snapshot(model)
        size = 128 if cls is SGDPlus else 1
        x = [ids(), ids(seed=1)]
        model.fit(x, labels(), batch_size=size, shuffle=False, verbose=0)
        found.append(snapshot(model))
    assert tables == [2]
    assert before is not None
    assert difference(before, *found).relative <= 1e-5


class _Stopped(WithTable):
    """Looks up rows that get no gradient."""

    def call(self, ids: Any) -> Any:
        return keras.ops.stop_gradient(keras.ops.mean(self.table(ids), axis=1))


def _stopped() -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    both = [layer(inputs) for layer in (_Stopped(), Lookup())]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(both)))


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_table_without_gradient_stays(tables: list[int]) -> None:
    """As in Keras, not even weight decay moves it; the other table moves."""
    loss = keras.losses.SparseCategoricalCrossentropy
    pair = train_pair(
        _stopped,
        ids(60).astype("int64"),
        labels(60),
        sgd={"learning_rate": 0.05, **MOMENTUM},
        compile=lambda: {"loss": loss(from_logits=True)},
    )
    assert tables[-1] == 1
    assert pair.difference().relative <= 1e-5
