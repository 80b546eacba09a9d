"""Random masks, drawn as TensorFlow draws them, in forms that XLA:CPU compiles well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_sgd_plus._lowering import scope
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

# Philox4x32-10 (Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405).
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85


def keep_mask(seed: Any, rate: float, shape: Any, dtype: Any) -> Tensor:
    """Where dropout keeps an element: those that `stateless_dropout` keeps.

    Args:
        seed: (2,) integers.
        rate: the share that is dropped, between 0 and 1.
        shape: of the mask.
        dtype: of what is masked; the numbers drawn depend on it.
    """
    with tf.name_scope(xla.TAKEN):
        if dtype == tf.float32 and isinstance(shape, tf.TensorShape):
            return uniform(seed, shape) >= rate
        return _native_mask(seed, rate, shape, dtype)


def _native_mask(seed: Any, rate: float, shape: Any, dtype: Any) -> Tensor:
    def draw(zero: Tensor) -> Tensor:
        ones = tf.ones(shape, dtype)
        own = seed + tf.cast(zero, seed.dtype)
        return tf.not_equal(tf.nn.experimental.stateless_dropout(ones, rate, own), 0)

    return _in_one_kernel(draw, shape)


def uniform(seed: Any, shape: tf.TensorShape) -> Tensor:
    """`tf.random.stateless_uniform(shape, seed)`, float32 from 0 to 1.

    The rounds are turns of a loop. Unrolled, XLA:CPU would compute all ten anew for
    each of the four numbers that they give.
    """
    count = shape.num_elements() or 0
    blocks = -(-count // 4)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    index = tf.range(blocks, dtype=tf.int32)
    low = counter[0] + tf.cast(index, tf.uint64)
    high = counter[1] + tf.cast(low < counter[0], tf.uint64)
    keys = tf.stack(_halves(key[0]))

    def body_fn(i: Any, keys: Any, *x: Tensor) -> tuple[Any, ...]:
        low_0, high_0 = _halves(tf.cast(x[0], tf.uint64) * _MULTIPLIERS[0])
        low_1, high_1 = _halves(tf.cast(x[2], tf.uint64) * _MULTIPLIERS[1])
        mixed = _xor(high_1, x[1], keys[0]), low_1, _xor(high_0, x[3], keys[1]), low_0
        return i + 1, keys + tf.constant(_KEY_STEPS, tf.uint32), *mixed

    start = (tf.constant(0), keys, *_halves(low), *_halves(high))
    lanes = tf.while_loop(
        lambda i, *_: i < _ROUNDS, body_fn, start, parallel_iterations=1
    )[2:]
    bits = tf.reshape(tf.stack(lanes, 1), (4 * blocks,))[:count]
    mantissa = tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32))
    one = tf.constant(0x3F800000, tf.uint32)
    numbers = tf.bitcast(tf.bitwise.bitwise_or(mantissa, one), tf.float32) - 1.0
    return tf.reshape(numbers, shape)


def _halves(numbers: Any) -> tuple[Any, Any]:
    high = tf.bitwise.right_shift(numbers, tf.constant(32, tf.uint64))
    return tf.cast(numbers, tf.uint32), tf.cast(high, tf.uint32)


def _xor(a: Any, b: Any, c: Any) -> Tensor:
    return tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(a, b), c)


def _in_one_kernel(draw: Callable[[Any], Any], shape: Any) -> Tensor:
    # A loop of one turn, which XLA makes one kernel of: outside of such a kernel it
    # computes the bits anew for every element. `draw` takes a () int32 that is 0, and
    # has to depend on it, or XLA would move the work out of the loop.
    return tf.while_loop(
        lambda i, _: scope.is_below_one(i),
        lambda i, _: (i + 1, draw(i)),
        (tf.constant(0), tf.zeros(shape, tf.bool)),
        parallel_iterations=1,
    )[1]
