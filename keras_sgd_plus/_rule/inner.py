"""The inner product of two gradients of one weight, and the norm of one."""

from __future__ import annotations

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._rule.gradient import (
    Gradient,
    OuterGradient,
    RowsGradient,
    dot,
    norm_of,
)


def inner(one: Gradient, other: Gradient) -> Tensor:
    """() float32 or wider: the inner product.

    Args:
        one: a gradient.
        other: the same, or what clipping has made of it: if that is outer or rows, it
            has the same direction, or the same indices.
    """
    if isinstance(one, OuterGradient) and isinstance(other, OuterGradient):
        if one.has_factored_norm:
            return one.norm() * other.norm()
    if isinstance(one, RowsGradient) and isinstance(other, RowsGradient):
        values = _added_up(one)
        return dot(values, values if other is one else _added_up(other))
    return dot(_wide(one.dense()), _wide(other.dense()))


def norm(gradient: Gradient) -> Tensor:
    """() float32 or wider: the Euclidean norm, also where its square overflows."""
    if isinstance(gradient, OuterGradient) and gradient.has_factored_norm:
        return gradient.norm()
    if isinstance(gradient, RowsGradient):
        return norm_of(_added_up(gradient))
    return norm_of(_wide(gradient.dense()))


def _added_up(rows: RowsGradient) -> Tensor:
    # (k, width): the sum of the rows of each index, where it comes first; else zeros.
    # As they stand, rows would count a token that comes twice as half of what it does.
    values = _wide(rows.values)
    if rows.indices.shape[0] == 1:
        return values
    is_same = tf.equal(rows.indices[:, None], rows.indices[None])
    first = tf.argmax(is_same, 1, tf.int32)
    return tf.math.unsorted_segment_sum(values, first, tf.shape(values)[0])


def _wide(tensor: Tensor) -> Tensor:
    # Squares of half precision would overflow.
    is_half = tensor.dtype not in (tf.float32, tf.float64)
    return tf.cast(tensor, tf.float32) if is_half else tensor
