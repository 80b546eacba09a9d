"""Sums and maxima over the rows and columns of wide matrices.

XLA:CPU takes the entries of a long row, or of a column of a wide matrix, one after the
other. A product with ones adds many of them at once, and the maximum of two halves of
a row compares many at once.
"""

from __future__ import annotations

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor

MIN_WIDTH = 512  # entries of a row; shorter ones gain nothing
_NARROW = 128  # entries of a row whose maximum costs little
# Half precision keeps the native sums: nothing was measured there.
_DTYPES = (tf.float32, tf.float64)


def of_rows(x: Tensor) -> Tensor:
    """The sum of each row; x is (n, width), the result (n, 1)."""
    if not _is_wide(x):
        return tf.reduce_sum(x, -1, keepdims=True)
    return tf.matmul(x, tf.ones((x.shape[-1], 1), x.dtype))


def of_columns(x: Tensor) -> Tensor:
    """The sum of each column; x is (n, width), the result (width,)."""
    if not _is_wide(x):
        return tf.reduce_sum(x, 0)
    ones = tf.ones((1, x.shape[0]), x.dtype)
    return tf.reshape(tf.matmul(ones, x), (-1,))


def largest_of_rows(x: Tensor) -> Tensor:
    """The largest entry of each row; x is (n, width), the result (n, 1)."""
    if _is_wide(x):
        while x.shape[-1] > _NARROW:
            half = (x.shape[-1] + 1) // 2  # the halves share an entry if it is odd
            x = tf.maximum(x[:, :half], x[:, -half:])
    return tf.reduce_max(x, -1, keepdims=True)


def _is_wide(x: Tensor) -> bool:
    is_static = x.shape.is_fully_defined()
    return is_static and x.shape[-1] >= MIN_WIDTH and x.dtype in _DTYPES
