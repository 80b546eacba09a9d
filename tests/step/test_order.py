"""The visiting order is uniform, and a pure function of a seed and a counter."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_sgd_plus import SGDPlus
from tests.support.internals import visiting_order
from tests.support.tiers import matrix
from tests.support.twins import dense_data, dense_model

# Each chi-squared test below rejects a right implementation once in 10,000 seeds; the
# seeds are fixed, so a test that passes once passes for good.
FLAKE_RATE = 1e-4


def _orders(num_orders: int, num_examples: int, seed: int) -> np.ndarray:
    @tf.function(jit_compile=True)
    def many() -> Any:
        counters = tf.range(num_orders, dtype=tf.int64) * num_examples
        return tf.map_fn(
            lambda c: visiting_order(seed, c, num_examples),
            counters,
            fn_output_signature=tf.int32,
        )

    return many().numpy()


@pytest.mark.parametrize("seed", [0, *matrix(1, 2**62)])
def test_all_permutations_of_four_are_equally_likely(seed: int) -> None:
    orders = _orders(4800, 4, seed)
    counts = {p: 0 for p in itertools.permutations(range(4))}
    for order in orders:
        counts[tuple(order.tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > FLAKE_RATE


def test_every_example_is_equally_likely_at_every_position() -> None:
    orders = _orders(3000, 10, seed=5)
    table = np.zeros((10, 10))
    for order in orders:
        table[np.arange(10), order] += 1
    # 100 cells whose rows and columns sum to 3000: 81 degrees of freedom.
    statistic = ((table - 300) ** 2 / 300).sum()
    assert stats.chi2.sf(statistic, 81) > FLAKE_RATE


def test_consecutive_orders_are_independent() -> None:
    """Pairs of first examples are uniform: orders are not powers of one permutation."""
    orders = _orders(4001, 5, seed=8)
    table = np.zeros((5, 5))
    np.add.at(table, (orders[:-1, 0], orders[1:, 0]), 1)
    assert stats.chisquare(table.ravel()).pvalue > FLAKE_RATE


@pytest.mark.parametrize("size", [1, *matrix(2), 7, *matrix(8, 9), 1000, *matrix(4096)])
def test_an_order_is_the_same_everywhere(size: int) -> None:
    """XLA, a plain graph and eager code agree, also on sizes unknown to tracing."""
    eager = visiting_order(3, tf.constant(17, tf.int64), size).numpy()
    assert sorted(eager.tolist()) == list(range(size))

    def static(counter: Any) -> Any:
        return visiting_order(3, counter, size)

    @tf.function
    def dynamic(counter: Any, rows: Any) -> Any:
        return visiting_order(3, counter, rows)

    counter = tf.constant(17, tf.int64)
    for other in (
        tf.function(static)(counter),
        tf.function(static, jit_compile=True)(counter),
        dynamic(counter, tf.constant(size)),
    ):
        np.testing.assert_array_equal(eager, other.numpy())


def test_the_order_is_the_shuffle_of_fisher_and_yates() -> None:
    bits = tf.random.stateless_uniform(
        (20,), [3, 17], minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    expected = list(range(20))
    for i, number in enumerate(bits.numpy().tolist()):
        j = i + number % (20 - i)
        expected[i], expected[j] = expected[j], expected[i]
    counter = tf.constant(17, tf.int64)
    assert visiting_order(3, counter, 20).numpy().tolist() == expected


def test_the_order_takes_few_operations() -> None:
    """Each is traced; TensorFlow's function in Python makes forty."""

    def order(counter: Any, size: Any) -> Any:
        return visiting_order(3, counter, size)

    specs = tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.int32)
    graph = tf.function(order, autograph=False).get_concrete_function(*specs).graph
    assert len(graph.get_operations()) < 15


@pytest.mark.parametrize("counter", [2**31 + 5, 2**33 + 5])
def test_all_bits_of_the_counter_count(counter: int) -> None:
    far = visiting_order(3, tf.constant(counter, tf.int64), 50).numpy()
    near = visiting_order(3, tf.constant(5, tf.int64), 50).numpy()
    assert (far != near).any()


class _Diary(keras.layers.Layer):
    """Passes x on and writes down the order in which it sees x[:, 0]."""

    def __init__(self, num_pages: int) -> None:
        super().__init__()
        self.num_pages = num_pages

    def build(self, input_shape: Any) -> None:
        del input_shape
        shape = (self.num_pages,)
        self.pages = self.add_weight(shape, "zeros", trainable=False)
        self.visits = self.add_weight((), "zeros", dtype="int32", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            index = tf.reshape(tf.convert_to_tensor(self.visits.value), (1, 1))
            pages = tf.convert_to_tensor(self.pages.value)
            self.pages.assign(tf.tensor_scatter_nd_update(pages, index, x[:1, 0]))
            self.visits.assign(self.visits + 1)
        return x


def _seen(num_examples: int, epochs: int, plus: dict[str, Any], **fit: Any) -> Any:
    """The number of each example in visiting order, (epochs, num_examples)."""
    diary = _Diary(num_examples * epochs)
    model = keras.Sequential([keras.Input((1,)), diary, keras.layers.Dense(1)])
    model.compile(SGDPlus(1e-6, **plus), "mse")
    x = np.arange(num_examples, dtype="float32")[:, None]
    model.fit(x, x, epochs=epochs, verbose=0, **fit)
    pages = diary.pages.numpy().astype(int)
    assert int(diary.visits.numpy()) == num_examples * epochs
    return pages.reshape(epochs, num_examples)


@pytest.mark.parametrize(
    "plus",
    [{}, *matrix({"jit_compile": False}, {"gradient_accumulation_steps": 4})],
    ids=["xla", "no xla", "accumulation"],
)
def test_each_example_is_visited_exactly_once_per_epoch(plus: dict[str, Any]) -> None:
    seen = _seen(50, 3, {"seed": 1, **plus}, batch_size=16)
    for epoch in seen:
        assert sorted(epoch.tolist()) == list(range(50))
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


def test_batches_stay_together_and_are_each_shuffled_anew() -> None:
    seen = _seen(48, 2, {"seed": 1}, batch_size=16, shuffle=False).reshape(-1, 16)
    for i, batch in enumerate(seen):
        assert sorted(batch.tolist()) == list(range(i % 3 * 16, i % 3 * 16 + 16))
    patterns = {tuple((batch % 16).tolist()) for batch in seen}
    assert len(patterns) == len(seen)


def test_accumulation_does_not_repeat_an_order() -> None:
    """The raw counter is the key, since the public one stands still inside a step."""
    plus = {"seed": 1, "gradient_accumulation_steps": 64}
    seen = _seen(48, 1, plus, batch_size=16, shuffle=False).reshape(-1, 16) % 16
    assert len({tuple(batch.tolist()) for batch in seen}) == 3


def test_given_order_is_as_handed_over() -> None:
    seen = _seen(20, 2, {"order": "given"}, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(seen, [np.arange(20)] * 2)


def _trained(seed: int | None, set_seed: int = 0) -> list[np.ndarray]:
    x, y = dense_data()
    keras.utils.set_random_seed(set_seed)
    model = dense_model()
    model.set_weights([np.full(w.shape, 0.1) for w in model.get_weights()])
    model.compile(SGDPlus(0.05, 0.9, seed=seed, jit_compile=False), "mse")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.matrix
def test_the_seed_decides() -> None:
    for a, b in zip(_trained(4), _trained(4, set_seed=9), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(_trained(4), _trained(5), strict=True))


@pytest.mark.matrix
def test_set_random_seed_decides_without_a_seed() -> None:
    for a, b in zip(_trained(None, 1), _trained(None, 1), strict=True):
        np.testing.assert_array_equal(a, b)
    pairs = zip(_trained(None, 1), _trained(None, 2), strict=True)
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.matrix
def test_resumed_at_a_batch_boundary_equals_uninterrupted(tmp_path: Any) -> None:
    x, y = dense_data(32)
    keras.utils.set_random_seed(0)
    model = dense_model()
    model.compile(SGDPlus(0.05, 0.9, seed=3), "mse")
    for start in range(0, 32, 8):
        model.train_on_batch(x[start : start + 8], y[start : start + 8])
        if start == 8:
            model.save(tmp_path / "half.keras")
    resumed = keras.saving.load_model(tmp_path / "half.keras")
    for start in (16, 24):
        resumed.train_on_batch(x[start : start + 8], y[start : start + 8])
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    slots = zip(model.optimizer.variables, resumed.optimizer.variables, strict=True)
    for a, b in slots:
        np.testing.assert_array_equal(a.numpy(), b.numpy())
