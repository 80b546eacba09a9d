"""Callbacks that train on other batches: records and rows stay those of `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import ExampleLog, SeededArrays, SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import tiered_keys, tiered_rows

N, SIZE, BAD = 22, 4, 13
X = np.random.default_rng(0).normal(size=(N, 3)).astype("float32")
Y = np.arange(N, dtype="float32")[:, None]
OTHER = X[:3] + 1  # examples that a callback brings
BAD_OTHER = np.full((2, 3), np.nan, "float32")


def _by_hand(model: Any, x: np.ndarray) -> None:
    model.optimizer.train_step(model, (x, np.ones((len(x), 1), "float32")))


def _on_batch(model: Any, x: np.ndarray) -> None:
    model.train_on_batch(x, np.ones((len(x), 1), "float32"))


def _nested_fit(model: Any, x: np.ndarray) -> None:
    y = np.ones((len(x), 1), "float32")
    model.fit(x, y, batch_size=2, epochs=2, verbose=0, shuffle=False)


def _reset(model: Any, x: np.ndarray) -> None:
    del x
    model.reset_metrics()


ACTIONS: dict[str, Callable[[Any, np.ndarray], None]] = {
    "train_on_batch": _on_batch,
    "nested_fit": _nested_fit,
    "train_step": _by_hand,
    "reset_metrics": _reset,
}
HOOKS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
)


class Acts(keras.callbacks.Callback):
    """Does something at every call of one hook."""

    def __init__(self, hook: str, action: Any, x: np.ndarray = OTHER) -> None:
        super().__init__()
        self._is_busy = False
        setattr(self, hook, self._act)
        self._action, self._x = action, x

    def _act(self, *args: Any, **kwargs: Any) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._action(self.model, self._x)
            self._is_busy = False


def compiled(rate: float = 0.0, **settings: Any) -> Any:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    )
    model.compile(SGDPlus(rate, seed=2, jit_compile=False, **settings), "mse")
    return model


PLACES = {f"{a}-{h}": (ACTIONS[a], h) for a in ACTIONS for h in HOOKS}
DEFAULT = (
    "nested_fit-on_train_batch_begin",
    "reset_metrics-on_train_batch_end",
)


@pytest.mark.matrix
@pytest.mark.parametrize("action, hook", tiered_rows(PLACES, unpack=True))
@pytest.mark.parametrize("first", [True, False])
def test_a_log_has_the_records_of_its_fit(
    action: Any, hook: str, first: bool, engagements: list[str]
) -> None:
    """At a rate of 0 each loss is the square of its own target."""
    model, log, acts = compiled(), ExampleLog(), Acts(hook, action)
    callbacks = [acts, log] if first else [log, acts]
    fit = {"batch_size": SIZE, "epochs": 2, "shuffle": False, "verbose": 0}
    if action is _nested_fit:
        model.fit(X, Y, callbacks=callbacks, **fit)
    else:
        data = SeededArrays(X, Y, batch_size=SIZE, seed=3)
        model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    assert engagements
    assert log.loss.shape == (2, N)
    np.testing.assert_allclose(log.loss, np.tile(Y.T**2, (2, 1)), rtol=1e-5)
    assert (log.visited >= 0).all()
    assert len(np.unique(log.visited)) == 2 * N


@pytest.mark.parametrize("key", tiered_keys(PLACES, *DEFAULT))
def test_messages_name_the_row(key: str) -> None:
    action, hook = PLACES[key]
    x = X.copy()
    x[BAD] = np.nan
    data = SeededArrays(x, Y, batch_size=SIZE, seed=3)
    fit = {
        "epochs": 2,
        "shuffle": False,
        "verbose": 0,
        "callbacks": [Acts(hook, action)],
    }
    model = compiled(nonfinite="skip")
    (text,) = caught_by(lambda: model.fit(data, **fit), "left out 2 update")
    assert f"In the data: rows {BAD}, {BAD}. " in text
    for entry in model.optimizer.skipped_examples():
        rows = data.rows_of(entry.batch, 1 - entry.epoch)
        assert [rows[i] for i in entry.positions] == [BAD]
    data = SeededArrays(x, Y, batch_size=SIZE, seed=3)
    with pytest.raises(FloatingPointError, match=f"In the data: row {BAD}. "):
        compiled(nonfinite="raise").fit(data, **fit)


def test_a_bad_example_of_a_callback_has_no_row() -> None:
    """It is none of the data, so no message may name one."""
    acts = Acts("on_train_batch_end", _on_batch, BAD_OTHER)
    model = compiled(nonfinite="skip")
    data = SeededArrays(X, Y, batch_size=SIZE, seed=3)
    fit = {"shuffle": False, "verbose": 0, "callbacks": [acts]}
    (text,) = caught_by(lambda: model.fit(data, **fit), "left out 12 update")
    assert "In the data" not in text
    assert {entry.epoch for entry in model.optimizer.skipped_examples()} == {None}


def test_logs_of_skips_are_those_of_the_epoch() -> None:
    x = X.copy()
    x[[1, BAD]] = np.nan
    model = compiled(nonfinite="skip")
    acts = Acts("on_epoch_begin", _by_hand, BAD_OTHER)
    with pytest.warns(UserWarning, match="left out 8"):
        history = model.fit(x, Y, 4, epochs=2, verbose=0, callbacks=[acts]).history
    assert history["skipped"] == [4, 4]  # as the loss, which has those examples, too


NUMBERS: dict[str, tuple[Any, str]] = {
    "half": (np.array([0, 1.5], "float32"), "1.5, which is no row"),
    "nan": (np.array([0, np.nan], "float32"), "nan, which is no row"),
    "negative": (np.array([0, -3], "int64"), "-3, which is no row"),
    "large": (np.array([2**40, 1], "int64"), "1099511627776, which is no row"),
    "unsigned": (np.array([2**63 + 1, 1], "uint64"), "9223372036854775809, which"),
    "gaps": (
        np.array([2**24, 1], "float32"),
        "16777216, too large to be exact in a column of float32",
    ),
}


@pytest.mark.parametrize("rows, said", tiered_rows(NUMBERS, "half", unpack=True))
def test_an_id_is_named_as_it_was_given(rows: np.ndarray, said: str) -> None:
    if rows.dtype.kind == "f":
        x: Any = np.stack([rows, np.zeros(2)], 1).astype(rows.dtype)
        inputs, log = keras.Input((2,)), ExampleLog(id=0)
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    else:
        x = {"a": X[:2], "row": rows}
        a, row = keras.Input((3,), name="a"), keras.Input((), name="row", dtype="int64")
        model = keras.Model({"a": a, "row": row}, keras.layers.Dense(1)(a))
        log = ExampleLog(id="row")
    model.compile(SGDPlus(0.0, jit_compile=False), "mse")
    with pytest.raises(ValueError, match=said):
        model.fit(x, Y[:2], verbose=0, callbacks=[log])
