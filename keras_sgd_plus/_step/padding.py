"""The number of examples that a batch is padded to: batches of many sizes share few.

XLA compiles the loop anew for each number. So it is a power of two, the *bucket* of the
batch: the smallest that holds it. Where twice that is compiled already, and the bucket
is not, it is taken instead: a data set of 1,536 makes batches of 1,024 and 512, and
compiles once. No batch becomes more than twice its bucket, since padding is copied.
"""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Model, Tensor

_SIZES = [2**i for i in range(3, 31)]
# Per model, the sum of the sizes so far, () int64: each is a bit of its own.
_used: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def padded_size(model: Model, num_examples: Tensor) -> Any:
    """The size for a batch of `num_examples`, () int32; notes that it is used."""
    sizes = tf.constant(_SIZES, tf.int32)
    bucket = tf.gather(sizes, tf.searchsorted(sizes, [num_examples])[0])
    if strategy.is_open():  # replicas would write one variable at once
        return bucket
    if model not in _used:
        _used[model] = private_tensorflow.variable(())
    used = _used[model]
    own = tf.cast(bucket, tf.int64)
    before = used.read_value()
    # Of the two bits, only the one of twice the bucket.
    takes_twice = tf.equal(tf.bitwise.bitwise_and(before, 3 * own), 2 * own)
    size = tf.where(takes_twice, 2 * own, own)
    used.assign(tf.bitwise.bitwise_or(before, size), read_value=False)
    return tf.cast(size, tf.int32)
