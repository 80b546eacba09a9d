"""Traces and compilations are counted; XLA is used where it can be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus, _compile
from tests import hlo
from tests.twins import assert_same, dense_data, dense_model, train_pair


@pytest.fixture
def compiled_runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each traced walk was handed to XLA."""
    runs: list[bool] = []
    call = _compile.Runner.__call__

    def counted(self: Any, *args: Any) -> Any:
        result = call(self, *args)
        runs.append(self.use_xla)
        return result

    monkeypatch.setattr(_compile.Runner, "__call__", counted)
    return runs


def _model(**options: Any) -> keras.Model:
    model = dense_model()
    model.compile(SGDPlus(0.01, 0.9, **options), "mse")
    return model


def test_the_loop_is_compiled_by_default(compiled_runs: list[bool]) -> None:
    x, y = dense_data()
    _model().fit(x, y, batch_size=8, verbose=0)
    assert compiled_runs == [True]


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
    """Rows that pad a batch to a power of two are never visited."""
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


def test_many_batch_sizes_compile_a_bounded_number_of_times(tmp_path: Path) -> None:
    sizes = [6, *range(1, 71)]
    # The first size as it is, then the powers of two: 8, 16, 32, 64, 128.
    assert _compilations(tmp_path, sizes) == 6


class _WithOp(keras.layers.Layer):
    """A layer that says supports_jit=True and does something that XLA can't."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def call(self, x: Any) -> Any:
        if self.op == "print":
            tf.print("", end="", output_stream=sys.stderr)
        elif self.op == "numpy_function":
            shape = x.shape
            x = tf.numpy_function(np.copy, [x], x.dtype)
            x.set_shape(shape)
        elif self.op == "string":
            text = tf.strings.as_string(tf.reduce_sum(x))
            x = x * tf.cast(tf.strings.length(text) > 0, x.dtype)
        return x


def _model_with(op: str) -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2), _WithOp(op)])


@pytest.mark.parametrize("op", ["print", "string"])
def test_what_xla_refuses_runs_without_it(
    op: str, engagements: list[str], compiled_runs: list[bool]
) -> None:
    x, y = dense_data()
    with pytest.warns(
        UserWarning, match=r"XLA cannot compile .*: unsupported"
    ) as found:
        pair = train_pair(lambda: _model_with(op), x, y, fit={"epochs": 2})
    assert sum("XLA cannot" in str(w.message) for w in found) == 1
    assert_same(pair)
    assert engagements and compiled_runs == [False]


@pytest.mark.parametrize(
    ("plus", "compile"),
    [({"jit_compile": False}, {}), ({}, {"run_eagerly": True})],
    ids=["jit_compile=False", "run_eagerly"],
)
def test_without_xla_the_result_is_the_same(
    plus: dict[str, Any],
    compile: dict[str, Any],
    engagements: list[str],
    compiled_runs: list[bool],
) -> None:
    x, y = dense_data(16)
    plus = {"order": "given", **plus}
    pair = train_pair(dense_model, x, y, plus=plus, our_compile=compile)
    assert_same(pair)
    assert engagements and not any(compiled_runs)


def test_keras_may_own_the_compilation(engagements: list[str]) -> None:
    x, y = dense_data()
    pair = train_pair(dense_model, x, y, our_compile={"jit_compile": True})
    assert_same(pair)
    assert engagements


def test_reshuffled_training_agrees_with_and_without_xla() -> None:
    x, y = dense_data()
    results = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = _model(seed=5, jit_compile=jit_compile)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def _sequences(lengths: list[int]) -> Iterator[Any]:
    for length in lengths:
        yield np.ones((2, length, 3), "float32"), np.ones((2, 1), "float32")


@pytest.mark.parametrize(("num_lengths", "expected"), [(8, 0), (12, 1)])
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
        for x, y in _sequences(list(range(2, 2 + num_lengths)) * 2):
            model.train_on_batch(x, y)
    texts = [str(w.message) for w in found if "different shapes" in str(w.message)]
    assert len(texts) == expected


FLAGS = {
    "": "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=10000000",
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=7": None,
    "--xla_cpu_enable_fast_math=false": "--xla_cpu_enable_fast_math=false "
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=10000000",
    "--xla_backend_extra_options=a=b": "--xla_backend_extra_options=a=b,"
    "xla_cpu_small_while_loop_byte_threshold=10000000",
}


@pytest.mark.parametrize(("given", "expected"), FLAGS.items(), ids=range(len(FLAGS)))
def test_the_threshold_never_overwrites(
    given: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", given)
    SGDPlus()
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == (given if expected is None else expected)


def test_no_xla_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    SGDPlus(jit_compile=False)
    SGDPlus(examples_per_update=None)
    assert "XLA_FLAGS" not in os.environ


def test_activations_take_the_memory_of_one_example() -> None:
    """Temporary memory of the compiled loop does not grow with the batch."""
    sizes = []
    for num_examples in (16, 1024):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(512), keras.layers.Dense(1)]
        )
        model.compile(SGDPlus(0.01), "mse")
        sizes.append(_largest_buffer(model, num_examples))
    small, large = sizes
    # One activation of the larger batch would be 1024 * 512 * 4 bytes.
    assert large - small < 1024 * 64 < 1024 * 512 * 4


def _largest_buffer(model: keras.Model, num_examples: int) -> int:
    """Bytes of the largest tensor in the loop's HLO, inputs of the batch apart."""
    x = np.ones((num_examples, 4), "float32")
    with pytest.MonkeyPatch.context() as patch:
        text = hlo.optimized(patch, model, x, x[:, :1])
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return max(4 * int(np.prod([int(d) for d in s.split(",")])) for s in shapes)
