"""Examples whose loss or gradients are not finite: found in the loop, and noted.

A group's cause is an int32: `NONE`, `LOSS`, or 1 + the position of a variable among the
trainable ones, whose gradient is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

NONE, LOSS = -1, 0
NO_POSITION = -1  # fills up the positions of a group that is shorter than others

_SAME_ENTRIES = ("Reshape", "Transpose", "Identity", "ExpandDims", "Squeeze")


class Faults(NamedTuple):
    """What was found in one batch so far; a part of the loop's carry."""

    count: Any  # () int32, groups
    rows: Any  # (rows, 1 + k) int32: cause and positions of each, in order of visit
    started: Any  # () bool, whether an update has been applied in all of training


def no_faults(num_rows: Any, group_size: int, halted: Any, started: Any) -> Faults:
    """Before the first group; a batch that is halted begins with a fault.

    Args:
        num_rows: () int32, more than the groups that can be noted.
        group_size: k.
        halted: () bool.
        started: () bool.
    """
    shape = tf.stack([num_rows, 1 + group_size])
    rows = tf.fill(shape, NO_POSITION)
    return Faults(tf.cast(halted, tf.int32), rows, started)


def note(faults: Faults, cause: Any, positions: Any, started: Any) -> Faults:
    """Notes a group if it has a cause.

    The row is always written, and kept only if the count moves on: cheaper than a
    choice between two whole tables.
    """
    width = faults.rows.shape[1]
    missing = width - 1 - tf.shape(positions)[0]
    row = tf.concat([[cause], positions, tf.fill([missing], NO_POSITION)], 0)
    row = tf.reshape(row, (1, width))
    rows = tf.tensor_scatter_nd_update(faults.rows, [[faults.count]], row)
    count = faults.count + tf.cast(cause != NONE, tf.int32)
    return Faults(count, rows, started)


def first_cause(loss: Any, gradients: Sequence[Any]) -> Any:
    """() int32: what is not finite, the loss before any gradient (None: no gradient).

    Args:
        loss: () float.
        gradients: tensors, `tf.IndexedSlices` or None.
    """
    cause = tf.constant(NONE)
    for i, gradient in reversed(list(enumerate(gradients))):
        if gradient is not None:
            cause = tf.where(all_finite(gradient), cause, i + 1)
    return tf.where(tf.math.is_finite(loss), cause, LOSS)


def all_finite(tensor: Any) -> Any:
    """() bool: whether no entry is NaN or infinite.

    The gradient of a Dense kernel on one example is an outer product, which XLA never
    stores. Its entries are finite if those of both vectors are, and the product of
    their largest magnitudes, which is one of its entries.
    """
    if isinstance(tensor, tf.IndexedSlices):
        tensor = tensor.values
    if not tensor.dtype.is_floating:
        return tf.constant(True)
    factors = None if tf.executing_eagerly() else _outer(tensor)
    if factors is None:
        return tf.reduce_all(tf.math.is_finite(tensor))
    largest = [tf.reduce_max(tf.abs(factor)) for factor in factors]
    product = tf.math.is_finite(largest[0] * largest[1])
    known = [tf.reduce_all(tf.math.is_finite(factor)) for factor in factors]
    return tf.logical_and(product, tf.logical_and(*known))


def _outer(tensor: Any) -> list[Any] | None:
    # The two factors where each entry is one product of an entry of each.
    op = tensor.op
    while op.type in _SAME_ENTRIES:
        op = op.inputs[0].op
    if op.type != "MatMul":
        return None
    first = op.inputs[0].shape
    inner = first[0] if op.get_attr("transpose_a") else first[1]
    return list(op.inputs) if inner == 1 else None
