"""Finds groups of examples that are not finite, and lists those of a batch.

A group's cause is an int32: `NONE`, `LOSS`, or 1 + the position of a variable among the
trainable ones, whose gradient is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._rule import Gradient

NONE, LOSS = -1, 0
NO_POSITION = -1  # fills up the positions of a group that is shorter than others


class Skips(NamedTuple):
    """The bad groups of one batch so far; a part of the loop's carry."""

    count: Tensor  # () int32, groups
    rows: Tensor  # (rows, 1 + k) int32: cause and positions of each, in order of visit
    # () bool, whether an update has been applied in all of training.
    has_started: Tensor


def no_skips(
    num_rows: Tensor, group_size: int, skip_all: Tensor, has_started: Tensor
) -> Skips:
    """The list before the first group.

    Args:
        num_rows: () int32, more than the groups that can be listed.
        group_size: k.
        skip_all: () bool, whether an earlier batch ended training. The list then begins
            with one group.
        has_started: () bool.
    """
    shape = tf.stack([num_rows, 1 + group_size])
    rows = tf.fill(shape, NO_POSITION)
    return Skips(tf.cast(skip_all, tf.int32), rows, has_started)


def with_group(
    skips: Skips, cause: Tensor, positions: Tensor, has_started: Tensor
) -> Skips:
    """The list with one more group, if that has a cause.

    The row is always written, and kept only if the count moves on: cheaper than a
    choice between two whole tables.
    """
    width = skips.rows.shape[1]
    missing = width - 1 - tf.shape(positions)[0]
    row = tf.concat([[cause], positions, tf.fill([missing], NO_POSITION)], 0)
    row = tf.reshape(row, (1, width))
    rows = tf.tensor_scatter_nd_update(skips.rows, [[skips.count]], row)
    count = skips.count + tf.cast(cause != NONE, tf.int32)
    return Skips(count, rows, has_started)


def first_cause(loss: Tensor, gradients: Sequence[Gradient | None]) -> Tensor:
    """() int32, the cause: the loss, or the first gradient that is not finite.

    Args:
        loss: () float.
        gradients: in the order of the trainable variables.
    """
    cause = tf.constant(NONE)
    for i, gradient in reversed(list(enumerate(gradients))):
        if gradient is not None:
            cause = tf.where(gradient.all_finite(), cause, i + 1)
    return tf.where(tf.math.is_finite(loss), cause, LOSS)
