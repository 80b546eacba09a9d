"""The tensors of a block: what is computed at its beginning, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._pending.block_plan import BlockPlace, BlockPlan
from keras_sgd_plus._pending.coefficients import Coefficients
from keras_sgd_plus._private.types import Tensor


class Product(NamedTuple):
    """The tensors of one kernel that stay the same throughout a block of k examples."""

    weight: Tensor  # (n, m), at its beginning
    velocity: Any  # (n, m), or None without momentum
    inputs: Tensor  # (k, n)
    clean: Tensor  # the same, with zeros for a row that is not finite
    gram: Tensor  # (k, k): products of the inputs with each other
    outputs: Tensor  # (k, m): of the inputs with the weight
    drifts: Any  # (k, m): of the inputs with the velocity, or None

    @property
    def num_rows(self) -> Tensor:
        """How many examples, (), can be walked before the next block: at least one.

        SGD never multiplies two inputs. Such a product may overflow, and infinity times
        a change that is zero is NaN. So a block ends before the first example whose
        product with an earlier one is not finite, or would not be after it is
        multiplied by a coefficient.
        """
        size = self.gram.shape[0]
        numbers = tf.range(size)
        rows = numbers[:, None]
        is_small = tf.abs(self.gram) < self.gram.dtype.max * _SMALL  # not if it is NaN
        is_lost = (numbers < rows) & ~is_small
        return tf.reduce_min(tf.where(is_lost, rows, size))


_SMALL = 1e-6  # part of the largest number


class Buffers(NamedTuple):
    """Memory that is used again in each block; nothing of the block before is read.

    Changes of examples that are not walked, those of an earlier block, count nothing.
    """

    inputs: list[Any]  # per kernel, (k, n), or () where they are computed at once
    changes: list[Tensor]  # per kernel, (k, m)
    zeros: Tensor  # (k,) float64, which stay


def new_buffers(plan: BlockPlan) -> Buffers:
    """The memory before the first block."""
    found = Buffers([], [], tf.zeros((plan.size,), tf.float64))
    for place in plan.places:
        num_inputs, num_outputs = place.shape
        dtype = place.variable.dtype
        rows = (plan.size, num_inputs)
        found.inputs.append(() if place.of_data else tf.zeros(rows, dtype))
        found.changes.append(tf.zeros((plan.size, num_outputs), dtype))
    return found


def begun(
    place: BlockPlace,
    values: Sequence[Tensor],
    inputs: Tensor,
    skips_bad: bool,
) -> Product:
    """The tensors of a kernel for a block with these inputs, (k, n).

    Args:
        place: of the kernel.
        values: the carry's, at the block's beginning.
        inputs: of the layer, zeros in rows that are no examples.
        skips_bad: whether rows that are not finite are left out of all but `outputs`.
    """
    clean = inputs
    if skips_bad:
        finite = tf.reduce_all(tf.math.is_finite(inputs), 1, keepdims=True)
        clean = tf.where(finite, inputs, tf.zeros_like(inputs))
    weight = values[place.weight_position]
    velocity = None
    if place.velocity_position is not None:
        velocity = values[place.velocity_position]
    gram = tf.matmul(clean, clean, transpose_b=True)
    # With the raw inputs, so that a bad example shows in the loss or a gradient.
    outputs = tf.matmul(inputs, weight)
    drifts = None if velocity is None else tf.matmul(clean, velocity)
    return Product(weight, velocity, inputs, clean, gram, outputs, drifts)


def finished(
    product: Product, changes: Tensor, now: Coefficients, num_walked: Tensor
) -> tuple[Tensor, Any]:
    """The kernel and its velocity, (n, m) or None, at the end of the block.

    Args:
        product: of the block.
        changes: (k, m), the rate times the error of each example.
        now: the coefficients after the last example.
        num_walked: () int32, the examples that were walked, the first ones.
    """
    dtype = changes.dtype
    changes = walked(changes, num_walked)
    clean = walked(product.clean, num_walked)  # infinity times zero is NaN

    def weighted(shares: Any) -> Tensor:
        if isinstance(shares, tuple):
            return changes
        return tf.cast(shares, dtype)[:, None] * changes

    parts = [weighted(now.changes)]
    if product.velocity is not None:
        parts.append(weighted(now.kicks))
    # One matrix for both: XLA compiles one kernel that makes it.
    totals = tf.matmul(clean, tf.concat(parts, 1), transpose_a=True)
    total, *of_velocity = tf.split(totals, len(parts), 1)

    weight, velocity = product.weight, product.velocity
    if not isinstance(now.weight, tuple):
        weight = tf.cast(now.weight, dtype) * weight
    if velocity is not None:
        weight += tf.cast(now.carried, dtype) * velocity
        velocity = tf.cast(now.velocity, dtype) * velocity - of_velocity[0]
    return weight - total, velocity


def walked(rows: Tensor, num_walked: Tensor) -> Any:
    """Rows, (k, m), with zeros in those of examples that were not walked."""
    is_walked = tf.range(rows.shape[0]) < num_walked
    return tf.where(is_walked[:, None], rows, 0)
