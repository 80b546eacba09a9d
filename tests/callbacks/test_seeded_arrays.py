"""`SeededArrays`: an order that follows from the seed and the epoch."""

from __future__ import annotations

import numpy as np

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
