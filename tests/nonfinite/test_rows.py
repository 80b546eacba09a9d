"""Messages about bad examples name the row of the data, or say how to get it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SeededArrays, SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import tiered_keys
from tests.support.twins import dense_data, linear_model

N, BATCH_SIZE = 22, 8  # the last batch is shorter
BAD = 13
SKIPPED = "Every loss and gradient should be finite"
CLEAN, Y = dense_data(N)
X = CLEAN.copy()
X[BAD] = np.nan
SHUFFLED = "fit(shuffle=True) had shuffled the arrays, so a position is no row of x"


def _compiled(nonfinite: str, **plus: Any) -> Any:
    model = linear_model()
    optimizer = SGDPlus(0.01, nonfinite=nonfinite, jit_compile=False, **plus)
    model.compile(optimizer, "mse")
    return model


def _raised(model: Any, *data: Any, **kwargs: Any) -> str:
    with pytest.raises(FloatingPointError) as raised:
        model.fit(*data, **{"verbose": 0, **kwargs})
    return str(raised.value)


def _skipped(model: Any, *data: Any, **kwargs: Any) -> str:
    (text,) = caught_by(lambda: model.fit(*data, **{"verbose": 0, **kwargs}), SKIPPED)
    return text


SAY: dict[str, Callable[..., str]] = {"raise": _raised, "skip": _skipped}


@pytest.mark.matrix
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("nonfinite", SAY)
def test_row_of_seeded_arrays(nonfinite: str, epochs: int) -> None:
    data = SeededArrays(X, Y, batch_size=BATCH_SIZE, seed=3)
    text = SAY[nonfinite](_compiled(nonfinite), data, shuffle=False, epochs=epochs)
    times = epochs if nonfinite == "skip" else 1
    rows = ", ".join([str(BAD)] * times)
    assert f"In the data: row{'s' if times > 1 else ''} {rows}. " in text
    order = np.random.default_rng((3, 0)).permutation(N)
    place = int(np.flatnonzero(order == BAD)[0])  # the example is elsewhere, so
    assert f"position {place % BATCH_SIZE} of batch {place // BATCH_SIZE}" in text
    assert place != BAD


@pytest.mark.matrix
@pytest.mark.parametrize("epoch", [0, 2, 1])
def test_row_of_seeded_arrays_in_any_epoch(epoch: int) -> None:
    data = SeededArrays(CLEAN.copy(), Y, batch_size=BATCH_SIZE, seed=6)
    order = np.random.default_rng((6, epoch)).permutation(N).tolist()
    assert order.index(BAD) >= BATCH_SIZE  # not in the first batch

    def spoil(now: int, logs: Any) -> None:
        rows = data._parts[0]
        rows[:] = X if now == epoch else CLEAN

    def evaluate(batch: int, logs: Any) -> None:
        model.evaluate(CLEAN, Y, verbose=0)  # resets metrics inside the epoch

    for nonfinite, say in SAY.items():
        data.next_epoch = 0
        model = _compiled(nonfinite)
        callback = keras.callbacks.LambdaCallback(
            on_epoch_begin=spoil, on_train_batch_end=evaluate
        )
        text = say(model, data, shuffle=False, epochs=3, callbacks=[callback])
        assert f"In the data: row {BAD}. " in text


def test_rows_of_a_second_fit_with_other_data() -> None:
    model = _compiled("skip")
    _skipped(model, SeededArrays(X, Y, batch_size=4, seed=1), shuffle=False, epochs=2)
    data = SeededArrays(X, Y, batch_size=BATCH_SIZE, seed=2)
    text = _skipped(model, data, shuffle=False)
    assert f"In the data: row {BAD}. " in text
    (entry,) = model.optimizer.skipped_examples()
    assert data.rows_of(entry.batch)[entry.positions[0]] == BAD


@pytest.mark.matrix
def test_rows_of_groups_and_of_arrays_that_were_not_shuffled() -> None:
    fit = {"batch_size": BATCH_SIZE, "shuffle": False}
    for nonfinite, say in SAY.items():
        text = say(_compiled(nonfinite), X, Y, **fit)
        assert f"In the data: row {BAD}. " in text
        pairs = _compiled(nonfinite, examples_per_update=2, order="given")
        assert f"In the data: rows {BAD - 1}, {BAD}. " in say(pairs, X, Y, **fit)


def _dataset(**shuffle: Any) -> Any:
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return (data.shuffle(N, **shuffle) if shuffle else data).batch(BATCH_SIZE)


class Batches(keras.utils.PyDataset):
    """Says nothing of its rows."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return X, Y


# Data and settings of `fit`, and what the messages say of rows; "" for nothing.
ADVICE: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "shuffled_arrays": (lambda: (X, Y), {}, SHUFFLED),
    "shuffled_batches": (
        lambda: (SeededArrays(X, Y),),
        {"shuffle": True},
        "with fit(shuffle=False) this message names the row",
    ),
    "shuffled_dataset": (
        lambda: (_dataset(seed=1),),
        {"shuffle": False},
        "shuffle(..., seed=1, reshuffle_each_iteration=False), and next(iter(",
    ),
    "dataset": (
        lambda: (_dataset(),),
        {"shuffle": False},
        "next(iter(dataset.skip(1))) is that batch",
    ),
    "other_batches": (lambda: (Batches(),), {"shuffle": False}, ""),
    "cut_short": (
        lambda: (SeededArrays(X, Y, batch_size=BATCH_SIZE),),
        {"shuffle": False, "steps_per_epoch": 3},
        "",
    ),
}


@pytest.mark.parametrize("kind", tiered_keys(ADVICE, "shuffled_arrays", "dataset"))
def test_advice_where_the_row_is_not_known(kind: str) -> None:
    make, fit, said = ADVICE[kind]
    for nonfinite, say in SAY.items():
        text = say(_compiled(nonfinite), *make(), **fit)
        assert "In the data" not in text
        before = text[: text.index("Look there for")]
        if said:
            assert said in text
        else:
            assert before.endswith((". ", "as handed over). ")) and "row" not in before


def test_by_hand_a_position_is_all_there_is() -> None:
    model = _compiled("raise")
    with pytest.raises(FloatingPointError, match=f"position {BAD} of batch 0") as found:
        model.train_on_batch(X, Y)
    assert "row" not in str(found.value) and "shuffle" not in str(found.value)
