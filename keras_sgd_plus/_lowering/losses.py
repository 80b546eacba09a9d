"""Cross-entropy with many classes, whose loss is looked up instead of added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_sgd_plus._lowering import sums
from keras_sgd_plus._private.types import Tensor

MIN_ENTRIES = 4_096  # of the logits; below, the native form costs little


def sparse_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """As `tf.nn.sparse_softmax_cross_entropy_with_logits` under XLA.

    The native form adds up a matrix that is zero but for the labels. NaN where a label
    is out of range, as there.

    Shapes: labels `(n,)`, logits `(n, classes)`; the result is `(n,)`.
    """
    return _cross_entropy(labels, logits)


@tf.custom_gradient
def _cross_entropy(labels: Tensor, logits: Tensor) -> tuple[Any, Callable[..., Any]]:
    classes = logits.shape[-1]
    shifted = logits - sums.largest_of_rows(logits)
    exps = tf.exp(shifted)
    totals = sums.of_rows(exps)
    is_valid = (labels >= 0) & (labels < classes)
    nan = tf.constant(float("nan"), logits.dtype)
    inside = tf.where(is_valid, labels, tf.zeros_like(labels))
    picked = tf.gather(shifted, inside, batch_dims=1)
    losses = tf.where(is_valid, tf.math.log(totals[:, 0]) - picked, nan)

    def grad(upstream: Tensor) -> tuple[None, Any]:
        target = tf.one_hot(inside, classes, dtype=logits.dtype)
        slopes = tf.where(is_valid, upstream, nan)
        slopes = slopes[:, None]
        # A quotient per row, where `exps / totals` would be one per entry.
        return None, slopes / totals * exps - slopes * target

    return losses, grad
