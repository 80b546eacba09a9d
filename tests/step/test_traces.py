"""Few traces and compilations happen; too many shapes give a warning."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.internals import context, walk_batch, xla
from tests.support.messages import (
    caught_by,
    compiled,
    step,
    stream,
)
from tests.support.twins import (
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)


def _model(**options: Any) -> keras.Model:
    model = dense_model()
    model.compile(SGDPlus(0.01, 0.9, **options), "mse")
    return model


def test_a_whole_training_traces_once(
    engagements: list[str], compiled_runs: list[bool]
) -> None:
    """Epochs, a second fit, another learning rate and a short batch trace nothing."""
    x, y = dense_data(30)
    model = _model()
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    model.optimizer.learning_rate = 0.5
    model.fit(x, y, batch_size=8, verbose=0)
    model.fit(x, y, batch_size=9, verbose=0)
    assert len(engagements) == 1
    assert compiled_runs == [True]


class _Counted(layers.Layer):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return 1.0 * x


@pytest.mark.parametrize("metrics", [None, ["mae"]], ids=["loss", "metrics"])
def test_a_built_model_is_run_once(metrics: Any) -> None:
    """Keras's build would run it once more, to see the outputs."""
    counted = _Counted()
    model = keras.Sequential([keras.Input((4,)), counted, layers.Dense(1)])
    model.compile(SGDPlus(0.01), "mse", metrics=metrics)
    before = counted.calls
    logs = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0).history
    assert counted.calls == before + 1
    assert ("mae" in logs) is (metrics is not None)


def test_a_new_learning_rate_takes_effect_without_a_trace(
    engagements: list[str],
) -> None:
    x, y = dense_data(8)
    model = _model()
    model.fit(x, y, batch_size=4, verbose=0)
    model.optimizer.learning_rate = 0.0
    before = model.get_weights()
    velocity = [v.numpy() for v in model.optimizer.momentums]
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert len(engagements) <= 2  # 8 divides 8: a static shape, the second signature
    # Momentum alone moves the weights: v decays by 0.9 at each of 8 updates.
    travelled = sum(0.9**i for i in range(1, 9))
    for a, b, v in zip(before, model.get_weights(), velocity, strict=True):
        np.testing.assert_allclose(b, a + travelled * v, rtol=1e-4, atol=1e-6)


def test_streams_of_many_sizes_trace_twice(engagements: list[str]) -> None:
    x, y = dense_data(30)
    model = _model()
    for size in [3, 5, 1, 30, 8, 17, 2, 9] * 3:
        model.train_on_batch(x[:size], y[:size])
    assert len(engagements) == 2  # the first size, then any size
    assert int(model.optimizer.iterations) == 3 * 75


def test_a_padded_batch_equals_its_own_size() -> None:
    """The loop never visits rows that pad a batch to a power of two."""
    x, y = dense_data(30)
    assert_same(train_pair(dense_model, x, y, our_fit={"batch_size": 11}))


_COUNT = """
import sys, numpy as np, keras
from keras_sgd_plus import SGDPlus
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
model.compile(SGDPlus(0.01), "mse")
x, y = np.ones((70, 5), "float32"), np.ones((70, 2), "float32")
for size in eval(sys.argv[1]):
    model.train_on_batch(x[:size], y[:size])
assert int(model.optimizer.iterations) == sum(eval(sys.argv[1]))
"""


def _compilations(tmp_path: Path, sizes: list[int]) -> int:
    """How many modules XLA compiled, by its own dump."""
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", textwrap.dedent(_COUNT), str(sizes)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return len(list(tmp_path.glob("*before_optimizations.txt")))


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # The first size as it is, then the powers of two: 8, 16, 32, 64, 128.
        ([6, *range(1, 71)], 6),
        # 64, also for 20; then 16, also for 1, since 64 is four times the bucket of 10.
        ([6, 40, 20, 10, 1, 20, 40], 3),
    ],
    ids=["growing", "shrinking"],
)
def test_many_batch_sizes_compile_a_bounded_number_of_times(
    tmp_path: Path, sizes: list[int], expected: int
) -> None:
    assert _compilations(tmp_path, sizes) == expected


def test_sizes_that_batches_are_padded_to() -> None:
    """Twice the bucket where only that was used before, and never more."""
    model = _model()
    seen = [1, 1024, 512, 256, 100, 200, 2000, 1024, 0, 9]
    found = [int(walk_batch.padded_size(model, tf.constant(n))) for n in seen]
    assert found == [8, 1024, 1024, 256, 256, 256, 2048, 1024, 8, 16]
    assert int(walk_batch.padded_size(_model(), tf.constant(512))) == 512


def _batches(lengths: list[int]) -> Iterator[Any]:
    for length in lengths:
        yield np.ones((2, length, 3), "float32"), np.ones((2, 1), "float32")


@pytest.mark.parametrize(
    ("num_lengths", "expected"),
    [(8, 0), pytest.param(12, 1, marks=pytest.mark.matrix)],
)
def test_many_lengths_are_warned_of_once(num_lengths: int, expected: int) -> None:
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(SGDPlus(0.01), "mse")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for x, y in _batches(list(range(2, 2 + num_lengths)) * 2):
            model.train_on_batch(x, y)
    texts = [str(w.message) for w in found if "different shapes" in str(w.message)]
    assert len(texts) == expected


def _any_length() -> Any:
    x = keras.Input((None, 2))
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def _sequences(lengths: Any) -> Any:
    def generate() -> Any:
        for length in lengths:
            yield np.ones((2, length, 2), "float32"), np.ones((2, 2), "float32")

    signature = (
        tf.TensorSpec((None, None, 2), tf.float32),
        tf.TensorSpec((None, 2), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(lengths)))


MANY = "Pad the examples to a few lengths"


@pytest.mark.matrix
@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_many_signatures_warn_once(by_hand: bool) -> None:
    model = compiled(_any_length(), plus={"jit_compile": "auto"})

    def train(first: int, last: int) -> None:
        data = _sequences(range(first, last))
        if by_hand:
            for x, y in data:
                step(model, x, y)
        else:
            stream(model, data)

    assert caught_by(lambda: train(1, 9), MANY) == []  # 8 lengths
    texts = caught_by(lambda: train(9, 10), MANY)
    assert len(texts) == 1
    assert repr(model.name) in texts[0]
    assert "9 different shapes" in texts[0]
    assert caught_by(lambda: train(9, 12), MANY) == []
    assert int(model.optimizer.iterations) == 2 * (8 + 1 + 3)


def test_many_signatures_without_xla_are_silent() -> None:
    model = compiled(_any_length(), plus={"jit_compile": False})
    data = _sequences(range(1, 12))
    assert caught_by(lambda: stream(model, data), MANY) == []


class _Slope(layers.Layer):
    """Adds the slope of a function of a constant 1, in which another 1 stands, too."""

    def call(self, x: Any) -> Any:
        one = tf.constant(1.0)
        with tf.GradientTape() as tape:
            tape.watch(one)
            value = one * one + tf.constant(1.0) * one
        return x + tape.gradient(value, one)


def test_constants_that_a_model_differentiates_by_stay_apart() -> None:
    """The slope is 3. It would be 4 if both were one, as equal integers are."""
    x, y = dense_data()

    def make() -> Any:
        return keras.Sequential([keras.Input((5,)), _Slope(), layers.Dense(2)])

    assert_same(train_pair(make, x, y))


def test_equal_integers_of_the_loop_are_one_constant() -> None:
    constants: list[bytes] = []
    surely_takes = xla.surely_takes

    def looked_at(graph: Any) -> bool:
        for op in graph.get_operations():
            if op.type == "Const" and op.outputs[0].dtype.is_integer:
                constants.append(op.get_attr("value").SerializeToString())
        return surely_takes(graph)

    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3)])
    model.compile(SGDPlus(0.01), "mse")
    with mock.patch.object(xla, "surely_takes", looked_at):
        model.fit(np.ones((8, 6, 6, 1)), np.ones((8, 4, 4, 2)), verbose=0)
    assert len(constants) > 10 and len(constants) == len(set(constants))


def test_small_batches_have_small_blocks(
    monkeypatch: pytest.MonkeyPatch, engagements: list[str]
) -> None:
    """Each size of block is traced once, and both give the weights of Keras."""
    sizes: list[int] = []
    plan_blocks = context.plan_blocks

    def seen(*args: Any) -> Any:
        plan = plan_blocks(*args)
        sizes.append(plan.size)
        return plan

    monkeypatch.setattr(context, "plan_blocks", seen)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 200)).astype("float32")
    y = rng.normal(size=(80, 1)).astype("float32")
    models = []
    for optimizer in (
        SGDPlus(1e-3, 0.9, order="given"),
        keras.optimizers.SGD(1e-3, 0.9),
    ):
        keras.utils.set_random_seed(2)
        hidden = layers.Dense(100, "tanh")
        models.append(keras.Sequential([keras.Input((200,)), hidden, layers.Dense(1)]))
        models[-1].compile(optimizer, "mse")
    ours, theirs = models
    for batch_size in (None, 80, 16, 80):  # None: that of Keras, 32
        ours.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        theirs.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    data = tf.data.Dataset.from_tensors((x, y))
    ours.fit(data, shuffle=False, verbose=0)
    theirs.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert sizes == [32, 64] and len(engagements) == 2
