"""The tensors of a block: what is computed at its beginning, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._pending.block_plan import BlockPlace, BlockPlan
from keras_sgd_plus._pending.coefficients import Coefficients
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._rule import power_of_two

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class Product(NamedTuple):
    """The tensors of one kernel that stay the same throughout a block of k examples."""

    weight: Tensor  # (n, m), at its beginning
    velocity: Any  # (n, m), or None without momentum
    inputs: Tensor  # (k, n)
    clean: Tensor  # the same, with zeros for a row that is not finite
    scales: Tensor  # (k,): powers of two, 1 but for inputs that are very large
    gram: Tensor  # (k, k): products of the inputs over their scales with each other
    outputs: Tensor  # (k, m): of the inputs with the weight
    drifts: Any  # (k, m): of the inputs with the velocity, or None


class Buffers(NamedTuple):
    """Memory that is used again in each block; nothing of the block before is read.

    Of an example past the batch's end the inputs are zeros, so that its changes, those
    of an earlier block, count nothing.
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
    scales, gram = _gram(clean)
    # With the raw inputs, so that a bad example shows in the loss or a gradient.
    outputs = tf.matmul(inputs, weight)
    drifts = None if velocity is None else tf.matmul(clean, velocity)
    return Product(weight, velocity, inputs, clean, scales, gram, outputs, drifts)


def _gram(rows: Tensor) -> tuple[Any, Any]:
    """The scales of rows, (k,), and the Gram matrix of rows over their scales, (k, k).

    SGD never multiplies two inputs. Such a product may overflow, and infinity times a
    change that is zero is NaN. So rows with very large entries are divided by a power
    of two, which is exact, and their changes are multiplied by it. That product SGD
    forms, too, when it updates the kernel. All other rows have the scale 1.
    """
    size = rows.shape[0]
    gram = tf.matmul(rows, rows, transpose_b=True)
    # The product of two rows is at most the larger of their squares, on the diagonal.
    squares = tf.reshape(gram, (-1,))[:: size + 1]
    is_large = squares > rows.dtype.max * _LARGE  # not where it is NaN

    def body_fn(done: Any, rest: Any, scales: Tensor, gram: Tensor) -> tuple[Any, ...]:
        i = tf.argmax(tf.cast(rest, tf.int32), output_type=tf.int32)
        is_it = tf.range(size) == i
        row = tf.gather(rows, tf.reshape(i, (1,)))
        scale = power_of_two(tf.reduce_max(tf.abs(row)))
        scales = tf.where(is_it, scale, scales)
        # With rows that come later it is formed again once they have their scales.
        products = tf.reduce_sum(rows / scales[:, None] * (row / scale), 1)
        gram = put(gram, tf.stack([i, 0]), products[None])
        gram = tf.where(is_it[None], products[:, None], gram)
        return done + 1, tf.logical_and(rest, tf.logical_not(is_it)), scales, gram

    # Nearly always of no turn. `tf.cond` would make the loop over blocks slower.
    num_large = tf.reduce_sum(tf.cast(is_large, tf.int32))
    scales = tf.ones((size,), rows.dtype)
    _, _, scales, gram = tf.while_loop(
        lambda done, *_: done < num_large,
        body_fn,
        (tf.constant(0), is_large, scales, gram),
        parallel_iterations=1,
        name=xla.TAKEN,
    )
    return scales, gram


_LARGE = 1e-6  # part of the largest number; sums of products below it are finite


def finished(
    product: Product, changes: Tensor, now: Coefficients
) -> tuple[Tensor, Any]:
    """The kernel and its velocity, (n, m) or None, at the end of the block.

    Args:
        product: of the block.
        changes: (k, m), the rate times the error of each example, times its scale.
        now: the coefficients after the last example.
    """
    dtype = changes.dtype

    def weighted(shares: Any) -> Tensor:
        factors = 1 / product.scales
        if not isinstance(shares, tuple):
            factors *= tf.cast(shares, dtype)
        return factors[:, None] * changes

    parts = [weighted(now.changes)]
    if product.velocity is not None:
        parts.append(weighted(now.kicks))
    # One matrix for both: XLA compiles one kernel that makes it.
    totals = tf.matmul(product.clean, tf.concat(parts, 1), transpose_a=True)
    total, *of_velocity = tf.split(totals, len(parts), 1)

    weight, velocity = product.weight, product.velocity
    if not isinstance(now.weight, tuple):
        weight = tf.cast(now.weight, dtype) * weight
    if velocity is not None:
        weight += tf.cast(now.carried, dtype) * velocity
        velocity = tf.cast(now.velocity, dtype) * velocity - of_velocity[0]
    return weight - total, velocity
