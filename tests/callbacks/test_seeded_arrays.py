"""`SeededArrays`: an order that follows from the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SeededArrays, SGDPlus
from tests.support.resume_run import small_model
from tests.support.twins import dense_data


def test_seeded_arrays_visit_each_once_in_an_order_of_seed_and_epoch() -> None:
    x = np.arange(23)
    y = {"a": 2 * x, "b": np.stack([x, x], 1)}

    def epochs(seed: int) -> list[list[int]]:
        data = SeededArrays(x, y, batch_size=5, seed=seed)
        orders = []
        for _ in range(3):
            data.on_epoch_begin()
            batches = [data[i] for i in range(len(data))]
            assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
            for rows, targets in batches:
                np.testing.assert_array_equal(targets["a"], 2 * rows)
                np.testing.assert_array_equal(targets["b"][:, 1], rows)
            orders.append(np.concatenate([b[0] for b in batches]).tolist())
        return orders

    orders = epochs(1)
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in [*orders, *epochs(2)]}) == 6
    assert epochs(1) == orders
    again = SeededArrays(x, batch_size=23, seed=1)
    again.next_epoch = 2
    again.on_epoch_begin()
    assert again[0][0].tolist() == orders[2]


def test_seeded_arrays_have_weights() -> None:
    x, y = dense_data(6)
    data = SeededArrays(x, y, np.zeros(6), batch_size=4)
    model = small_model(SGDPlus(0.1))
    before = model.get_weights()
    model.fit(data, shuffle=False, verbose=0)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert int(model.optimizer.iterations) == 6


def _batch(*parts: Any) -> Any:
    return SeededArrays(*parts, batch_size=8)[0]


def test_lists_of_numbers_are_arrays() -> None:
    x, y = dense_data(8)
    for rows, targets in [
        (x.tolist(), y.tolist()),
        (x.tolist(), y),
        (tuple(x.tolist()), tf.constant(y)),
        ([tuple(row) for row in x], list(map(list, y))),
    ]:
        for found, expected in zip(_batch(rows, targets), _batch(x, y), strict=True):
            np.testing.assert_array_equal(found, expected)
    numbers, words = _batch(list(range(500)), ["a"] * 500)
    assert numbers.shape == words.shape == (8,)
    model = small_model(SGDPlus(0.01, jit_compile=False))
    model.fit(SeededArrays(x.tolist(), y.tolist()), shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 8


def test_structures_keep_their_arrays_apart() -> None:
    x, y = dense_data(8)
    both, target = _batch([x, y.tolist()], {"a": y.tolist(), "b": (y, x)})
    assert [a.shape for a in both] == [x.shape, y.shape]
    assert target["a"].shape == y.shape
    assert [a.shape for a in target["b"]] == [y.shape, x.shape]


def test_a_batch_has_1024_examples_unless_told() -> None:
    data = SeededArrays(np.zeros((1500, 1)))
    assert [len(data[i][0]) for i in range(len(data))] == [1024, 476]


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no_seed": (
        lambda: SeededArrays([1.0], seed=None),  # type: ignore[arg-type]
        TypeError,
        "`seed` must be an int .*Received: seed=None. Use seed=0",
    ),
    "ragged": (
        lambda: SeededArrays([1.0, 2.0], [[1.0, 2.0], [3.0]]),
        ValueError,
        "Received: y with rows of several. Pad the rows to one length",
    ),
    "lengths": (
        lambda: SeededArrays({str(i): np.ones(7 + i // 200) for i in range(300)}),
        ValueError,
        r"Received: x\[0\] of shape \(7,\) and x\[\d+\] of shape \(8,\). Give every",
    ),
    "lengths_of_lists": (
        lambda: SeededArrays(list(range(500)), list(range(499))),
        ValueError,
        r"Received: x of shape \(500,\) and y of shape \(499,\). Give every",
    ),
    "no_list": (
        lambda: SeededArrays(1.0),
        ValueError,
        r"Received: x of shape \(\). Give every",
    ),
    "empty_list": (lambda: SeededArrays([]), ValueError, r"x of shape \(0,\)"),
    "nothing": (lambda: SeededArrays(None), ValueError, "Received: no array"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_refused(key: str) -> None:
    make, error, fix = REFUSED[key]
    with pytest.raises(error, match=fix) as raised:
        make()
    assert type(raised.value) is error
    assert len(str(raised.value)) < 250
