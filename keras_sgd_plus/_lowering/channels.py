"""Sums over all axes but the channels: biases and batch normalization.

They are computed on a matrix with a row per position. XLA:CPU adds up the rows of a
matrix in many partial sums; over several axes it adds one entry after the other.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_sgd_plus._lowering import pooled, scope, sums
from keras_sgd_plus._private.types import Tensor

_FEW_ROWS = 512  # at most, to sum the errors that pooling let pass and not the rows
_MANY_ROWS = 64  # to sum gradients of; fewer are computed twice as well


def moments(x: Tensor, axes: Any, keepdims: bool) -> Tensor:
    """Mean and variance over all axes but the last, or None for other axes."""
    rank = x.shape.rank
    if sorted(a % rank for a in axes) != list(range(rank - 1)) or not _is_static(x):
        return None
    mean, variance = tf.nn.moments(_rows(x), [0])
    shape = (1,) * (rank - 1) + x.shape[-1:] if keepdims else x.shape[-1:]
    return tf.reshape(mean, shape), tf.reshape(variance, shape)


def batch_normalization(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    offset: Tensor,
    scale: Tensor,
    epsilon: float,
) -> Tensor:
    """As `tf.nn.batch_normalization` over all axes but the last, or None."""
    if mean.shape != x.shape[-1:] or not _is_static(x):
        return None
    factor = tf.math.rsqrt(variance + epsilon)
    factor = factor if scale is None else factor * scale
    term = -mean * factor if offset is None else offset - mean * factor
    return tf.reshape(_affine(_rows(x), factor, term), x.shape)


@tf.custom_gradient
def _affine(rows: Tensor, factor: Tensor, term: Tensor) -> Tensor:
    def grad(upstream: Tensor) -> Tensor:
        upstream = scope.computed_once(upstream)
        slopes = tf.reduce_sum(upstream * rows, 0)
        return upstream * factor, slopes, tf.reduce_sum(upstream, 0)

    return rows * factor + term, grad


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """The sum with a vector along the last axis, or None where it is none."""
    vector = bias.shape.num_elements() == bias.shape[-1:].num_elements()
    if not vector or x.shape[-1:] != bias.shape[-1:] or x.shape.rank < 3:
        return None
    if x.dtype != bias.dtype or bias.shape.rank > x.shape.rank or not _is_static(x):
        return None
    return tf.reshape(_biased(_rows(x), tf.reshape(bias, (-1,))), x.shape)


@tf.custom_gradient
def _biased(rows: Tensor, bias: Tensor) -> Tensor:
    def grad(upstream: Tensor) -> Tensor:
        errors = pooled.errors_of(upstream)
        if errors is not None and rows.shape[0] <= _FEW_ROWS:
            return upstream, errors.sums()
        if rows.shape[0] >= _MANY_ROWS:
            upstream = scope.computed_once(upstream)
        return upstream, sums.of_columns(upstream)

    return tf.nn.bias_add(rows, bias), grad


def _rows(x: Tensor) -> Tensor:
    return tf.reshape(x, (-1, x.shape[-1]))


def _is_static(x: Tensor) -> bool:
    return x.shape.is_fully_defined() and x.dtype.is_floating
