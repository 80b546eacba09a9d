"""Tables that move in parts end as whole tables do, with options that Keras lacks."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.compare import difference, snapshot
from tests.support.internals import tracing
from tests.support.replicas import mirrored
from tests.support.tables import (
    ALL,
    DECAY,
    LENGTH,
    ROWS,
    UPDATES,
    bag,
    embedding,
    ids,
    labels,
)


def _train(
    model: Any,
    x: Any,
    y: Any,
    settings: dict[str, Any],
    scaled: bool = False,
    replicas: int = 1,
) -> Any:
    """Trains a copy with the same start; gives what it was and what it became."""
    keras.utils.set_random_seed(1)
    with contextlib.ExitStack() as stack:
        if replicas > 1:
            stack.enter_context(mirrored(replicas).scope())
        model = model()
        rate = {"learning_rate": 0.05, "order": "given"}
        optimizer: Any = SGDPlus(**{**rate, **settings})
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=8.0, dynamic_growth_steps=40
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
    before = snapshot(model)
    model.fit(x, y, batch_size=120, shuffle=False, verbose=0)
    return before, snapshot(model)


def _assert_whole_is_same(
    tables: list[int], monkeypatch: pytest.MonkeyPatch, *arguments: Any, **more: Any
) -> None:
    before, in_parts = _train(*arguments, **more)
    assert tables and set(tables) == {1}
    monkeypatch.setenv(tracing.SWITCH, "0")
    tables.clear()
    _, whole = _train(*arguments, **more)
    assert not tables
    assert difference(before, in_parts, whole).relative <= 1e-5


@pytest.mark.matrix
@pytest.mark.parametrize(
    "settings",
    [
        {"loss_scale_factor": 8.0},  # Keras cannot divide these gradients
        {"examples_per_update": 4},
        {"examples_per_update": 3, "nonfinite": "skip"},
    ],
    ids=lambda s: " ".join(s),
)
def test_equals_whole_tables(
    settings: Any, tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (bag, ids(), labels(), {**ALL, **settings})
    _assert_whole_is_same(tables, monkeypatch, *arguments)


@pytest.mark.matrix
def test_replicas(tables: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replica's rows are up to date when all are averaged."""
    arguments = (bag, ids(), labels(), ALL)
    _assert_whole_is_same(tables, monkeypatch, *arguments, replicas=2)


def _weighted_inputs(bad: tuple[int, ...]) -> Any:
    factors = np.ones((UPDATES, 1), "float32")
    factors[list(bad)] = np.nan
    return [ids(), factors]


def _weighted() -> keras.Model:
    ids, factor = keras.Input((LENGTH,), dtype="int32"), keras.Input((1,))
    pooled = layers.GlobalAveragePooling1D()(embedding()(ids))
    return keras.Model([ids, factor], layers.Dense(4)(pooled * factor))


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:The loss should be finite")  # it overflows
def test_loss_scale_that_skips(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped update is no update of the rows that wait."""
    arguments = (_weighted, _weighted_inputs((3, 130, 131, 255)), labels(), ALL)
    _assert_whole_is_same(tables, monkeypatch, *arguments, scaled=True)


@pytest.mark.matrix
@pytest.mark.parametrize("schedule", [False, True])
def test_skipped_examples(
    schedule: bool, tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**ALL, "nonfinite": "skip"}
    if schedule:
        settings["learning_rate"] = DECAY(0.05, 90, 0.5)
    arguments = (_weighted, _weighted_inputs((3, 130, 131, 255)), labels(), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _assert_whole_is_same(tables, monkeypatch, *arguments)


@pytest.mark.matrix
def test_rows_are_up_to_date_after_an_error(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nonfinite="raise"` stops in the middle of a batch."""
    found = []
    for switch in "10":
        monkeypatch.setenv(tracing.SWITCH, switch)
        keras.utils.set_random_seed(1)
        model = _weighted()
        model.compile(
            SGDPlus(0.05, order="given", nonfinite="raise", **ALL),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        before = snapshot(model)
        with pytest.raises(FloatingPointError):
            inputs = _weighted_inputs((200,))
            model.fit(inputs, labels(), batch_size=128, shuffle=False, verbose=0)
        found.append(snapshot(model))
    assert tables == [1]
    assert difference(before, *found).relative <= 1e-5


@pytest.mark.matrix
def test_ids_out_of_range_change_no_row(
    tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = ids()
    x[::50, 0] = ROWS + 5
    _assert_whole_is_same(tables, monkeypatch, bag, x, labels(), ALL)


def _half() -> keras.Model:
    return bag(dtype="bfloat16")


@pytest.mark.matrix
@pytest.mark.filterwarnings("default:With momentum or weight decay")
def test_half_precision_is_whole(tables: list[int]) -> None:
    with pytest.warns(UserWarning, match="bfloat16"):
        _train(_half, ids(60), labels(60), ALL)
    assert not tables


@pytest.mark.matrix
@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.0}, {"momentum": 0.9, "examples_per_update": 120}],
)
def test_not_where_it_does_not_help(settings: Any, tables: list[int]) -> None:
    """Without momentum idle rows do not move; large groups touch most rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(bag, ids(), labels(), settings)
    assert len(tables) == (0 if settings["momentum"] == 0 else 1)
