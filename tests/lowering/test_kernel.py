"""XLA keeps loops that multiply matrices out of its one-kernel form."""

from __future__ import annotations

import os
from typing import Any

import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import one_kernel, xla
from tests.support.versions import TENSORFLOW


def _products(function: Any, *shapes: tuple[int, ...]) -> int:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return one_kernel.products(traced.graph)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (tf.matmul, [(4, 5), (5, 6)], 120),
        (lambda a, b: tf.matmul(a, b, transpose_a=True), [(5, 4), (5, 6)], 120),
        (lambda a, b: tf.matmul(a, b, transpose_b=True), [(4, 5), (6, 5)], 120),
        (tf.matmul, [(3, 4, 5), (3, 5, 6)], 360),
        (tf.matmul, [(1, 5), (5, 6)], 0),
        (tf.matmul, [(4, 5), (5, 1)], 0),
        (tf.matmul, [(4, 1), (1, 6)], 0),
        (lambda a, b: tf.einsum("abc,cde->abde", a, b), [(1, 4, 5), (5, 2, 3)], 120),
        (lambda a, b: tf.einsum("ab,bc->ac", a, b), [(1, 5), (5, 6)], 0),
        (tf.add, [(400, 500), (400, 500)], 0),
    ],
)
def test_products(function: Any, shapes: Any, expected: int) -> None:
    assert _products(function, *shapes) == expected


def test_a_native_convolution_is_above_the_bound() -> None:
    found = _products(
        lambda x, k: tf.nn.conv2d(x, k, 1, "VALID"), (1, 5, 5, 1), (3, 3, 1, 2)
    )
    assert found > one_kernel.MAX_PRODUCTS


@pytest.mark.skipif(
    TENSORFLOW < (2, 20),
    reason="XLA has one kernel for small loops, and the option, since TensorFlow 2.20",
)
@pytest.mark.parametrize(("size", "is_one_kernel"), [(8, True), (64, False)])
def test_form_of_the_compiled_loop(size: int, is_one_kernel: bool) -> None:
    SGDPlus()
    assert xla.SMALL_LOOP_OPTION in os.environ["XLA_FLAGS"]

    @tf.function(jit_compile=True, autograph=False)
    def loop(x: Any, turns: Any) -> Any:
        def body_fn(i: Any, x: Any, fence: Any) -> Any:
            x = tf.tanh(tf.matmul(x, x))
            graph = tf.compat.v1.get_default_graph()
            return i + 1, x, one_kernel.fenced(graph, fence)

        start = (tf.constant(0), x, one_kernel.new_fence())
        return tf.while_loop(lambda i, *_: i < turns, body_fn, start)

    arguments = tf.eye(size), tf.constant(3)
    text = loop.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    assert ("xla_cpu_small_call" in text) is is_one_kernel
    assert (size**3 > one_kernel.MAX_PRODUCTS) is not is_one_kernel
