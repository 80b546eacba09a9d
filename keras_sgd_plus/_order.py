"""The order in which the examples of a batch are visited."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import tensorflow as tf


def visiting_order(seed: int, counter: Any, num_examples: Any, size: Any = None) -> Any:
    """A uniform permutation of a batch: a pure function of `seed` and `counter`.

    There is no generator state, and the permutation is the same with and without XLA.
    The shuffle is that of Fisher and Yates (Durstenfeld, 1964,
    https://doi.org/10.1145/364520.364540), from 64 random bits per example.

    Args:
        seed: that of the optimizer.
        counter: () int64, the raw update counter at the batch's start.
        num_examples: () int32, the examples of the batch.
        size: the length of the result, `num_examples` or more. A batch that is padded
            to it has the same order. Defaults to `num_examples`.

    Returns:
        (size,) int32: the positions to visit, then those of the padding.
    """
    size = num_examples if size is None else size
    counter = tf.cast(counter, tf.int64)
    every_bit: Any = None
    bits = tf.random.stateless_uniform(
        (size,),
        tf.stack([tf.constant(seed, tf.int64), counter]),
        minval=every_bit,
        maxval=every_bit,
        dtype=tf.int64,
        alg="philox",
    )
    positions = tf.range(size, dtype=tf.int32)
    remaining = tf.cast(tf.maximum(num_examples - positions, 1), tf.uint64)
    offsets = tf.math.floormod(tf.bitcast(bits, tf.uint64), remaining)
    partners = positions + tf.cast(offsets, tf.int32)
    never = counter < 0

    def body_fn(i: Any, order: Any) -> tuple[Any, Any]:
        j = tf.gather(partners, i)
        at_i, at_j = order.read(i), order.read(j)
        # Both are read before one is written, and XLA is told so by a dependency that
        # changes nothing: otherwise it copies the whole order for every swap.
        order = order.write(i, tf.where(never, at_i, at_j))
        return i + 1, order.write(j, at_i)

    order = tf.TensorArray(
        tf.int32, size=size, element_shape=(), clear_after_read=False
    ).unstack(positions)
    num_examples = tf.convert_to_tensor(num_examples)
    return tf.while_loop(
        lambda i, _: i < num_examples,
        body_fn,
        (tf.constant(0), order),
        parallel_iterations=1,
    )[1].stack()


def derived_seed() -> int:
    """A seed from Python's generator, which `keras.utils.set_random_seed` sets.

    A digest of its state and no draw from it: SGDPlus and SGD must leave the weights
    that a model initialises afterwards alike.
    """
    digest = hashlib.sha256(repr(random.getstate()).encode()).digest()
    return int.from_bytes(digest[:4], "big")
