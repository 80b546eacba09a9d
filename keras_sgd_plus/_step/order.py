"""The order in which the examples of a batch are visited."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

_PHILOX = 1  # in raw operations


def visiting_order(seed: int, counter: Tensor, num_examples: Tensor) -> Any:
    """A uniform permutation of a batch: a pure function of `seed` and `counter`.

    There is no generator state, and the permutation is the same with and without XLA.

    Args:
        seed: that of the optimizer.
        counter: () int64, the raw update counter at the batch's start.
        num_examples: () int32, the examples of the batch.

    Returns:
        (num_examples,) int32: the positions to visit.
    """
    counter = tf.cast(counter, tf.int64)
    key = tf.stack([tf.constant(seed, tf.int64), counter])
    if xla.is_tracing():
        return _shuffle(key, num_examples, counter < 0)
    # `tf.random.experimental.stateless_shuffle(places, key, alg="philox")`, which takes
    # some forty operations to make key and counter, each of which is traced.
    made = tf.raw_ops.StatelessRandomGetKeyCounter(seed=key)
    return tf.raw_ops.StatelessShuffle(
        value=tf.range(num_examples, dtype=tf.int32),
        key=made.key,
        counter=made.counter,
        alg=_PHILOX,
    )


def _shuffle(key: Any, num_examples: Tensor, never: Any) -> Any:
    # The shuffle of Fisher and Yates (Durstenfeld, 1964,
    # https://doi.org/10.1145/364520.364540), which is that of `stateless_shuffle`. XLA
    # has no kernel for that.
    every_bit: Any = None
    bits = tf.random.stateless_uniform(
        (num_examples,), key, every_bit, every_bit, tf.uint32, alg="philox"
    )
    places = tf.range(num_examples, dtype=tf.int32)
    offsets = tf.math.floormod(bits, tf.cast(num_examples - places, tf.uint32))
    partners = places + tf.cast(offsets, tf.int32)
    order = tf.TensorArray(
        tf.int32, size=num_examples, element_shape=(), clear_after_read=False
    ).unstack(places)

    def body_fn(i: Any, order: Tensor) -> tuple[Any, Any]:
        j = tf.gather(partners, i)
        at_i, at_j = order.read(i), order.read(j)
        # Both are read before one is written, and XLA is told so by a dependency that
        # changes nothing: otherwise it copies the whole order for every swap.
        order = order.write(i, tf.where(never, at_i, at_j))
        return i + 1, order.write(j, at_i)

    return tf.while_loop(
        lambda i, _: i < num_examples,
        body_fn,
        (tf.constant(0), order),
        parallel_iterations=1,
    )[1].stack()


def derived_seed() -> int:
    """A seed from Python's generator, which `keras.utils.set_random_seed` sets.

    A digest of its state and no draw from it: a model that is made afterwards must have
    the same initial weights with SGDPlus and with SGD.
    """
    digest = hashlib.sha256(repr(random.getstate()).encode()).digest()
    return int.from_bytes(digest[:4], "big")
