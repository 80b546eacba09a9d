"""The gradient of one weight, in one of three kinds.

- `DenseGradient`: a tensor of the weight's shape.
- `RowsGradient`: rows of an embedding table with their indices (`tf.IndexedSlices`).
- `OuterGradient`: the product of a layer's input and its error, which is what a Dense
  kernel has on one example. Its norm is the product of their norms, so nothing of the
  kernel's size is computed to measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

ops: Any = keras.ops  # its annotations name tensors of every backend
Map = Callable[[Tensor], Tensor]

# Entries of a vector, from which on its sum is sooner found than its maximum.
_MANY = 64
_SAME_ENTRIES = ("Reshape", "Transpose", "Identity", "ExpandDims", "Squeeze")


_PLAIN = 1e20  # a sum of squares below it neither overflows nor hides small factors
# Of a type: the bits of its exponent, integers of its size, and powers of two whose
# inverses are normal numbers: XLA takes subnormal ones for zero.
_EXPONENTS = {
    tf.float32: (0x7F800000, tf.int32, 2.0**-126, 2.0**126),
    tf.float64: (0x7FF0000000000000, tf.int64, 2.0**-1022, 2.0**1022),
}


@dataclass(frozen=True)
class DenseGradient:
    """A tensor of the weight's shape. The other kinds have the same methods."""

    value: Tensor

    def dense(self) -> Tensor:
        """The gradient as a tensor of the weight's shape."""
        return self.value

    def entrywise(self, function: Map) -> Gradient:
        """The function of each entry; it must leave zero alone."""
        return DenseGradient(function(self.value))

    def scaled(self, function: Map) -> Gradient:
        """The gradient after `function`, which multiplies or divides by a number."""
        return DenseGradient(function(self.value))

    def squared_norm(self) -> Tensor:
        """() float: the sum of squares."""
        return ops.sum(ops.square(self.value))

    def clipped_by_norm(self, limit: Tensor) -> Gradient:
        """The gradient, scaled down to a Euclidean norm of `limit`, () float64."""
        limit = _as(limit, self.value.dtype)
        return DenseGradient(tf.clip_by_norm(self.value, limit))

    def all_finite(self) -> Tensor:
        """() bool: whether no entry is NaN or infinite."""
        return _all_finite(self.value)


@dataclass(frozen=True)
class RowsGradient:
    """Rows of a table; all others are zero. Equal indices add up.

    Norms are those of the rows as they stand, before equal ones are added, as in Keras.
    """

    values: Tensor  # (k, width)
    indices: Tensor  # (k,) integers
    shape: Tensor | None  # (2,) integers, of the table

    def slices(self) -> tf.IndexedSlices:
        """As TensorFlow and Keras have it."""
        return tf.IndexedSlices(self.values, self.indices, self.shape)

    def dense(self) -> Tensor:
        return tf.convert_to_tensor(self.slices())

    def entrywise(self, function: Map) -> Gradient:
        return RowsGradient(function(self.values), self.indices, self.shape)

    def scaled(self, function: Map) -> Gradient:
        return self.entrywise(function)

    def squared_norm(self) -> Tensor:
        return ops.sum(ops.square(self.values))

    def clipped_by_norm(self, limit: Tensor) -> Gradient:
        limit = _as(limit, self.values.dtype)
        clipped: Any = tf.clip_by_norm(self.slices(), limit)
        return RowsGradient(clipped.values, clipped.indices, self.shape)

    def all_finite(self) -> Tensor:
        return _all_finite(self.values)


@dataclass(frozen=True)
class OuterGradient:
    """The outer product of two vectors; XLA never stores it.

    `value` is that product in the weight's shape, as the tape gives it. Norms and the
    search for NaN use the vectors alone.
    """

    value: Tensor
    left: Tensor  # any shape, a vector's entries
    right: Tensor  # the same
    has_factored_norm: bool  # else the norm is that of `value`, bit for bit Keras's

    def dense(self) -> Tensor:
        return self.value

    def entrywise(self, function: Map) -> Gradient:
        return DenseGradient(function(self.value))

    def scaled(self, function: Map) -> Gradient:
        return replace(self, value=function(self.value), right=function(self.right))

    def squared_norm(self) -> Tensor:
        if not self.has_factored_norm:
            return DenseGradient(self.value).squared_norm()
        return tf.square(self.norm())

    def clipped_by_norm(self, limit: Tensor) -> Gradient:
        if not self.has_factored_norm:
            return DenseGradient(self.value).clipped_by_norm(limit)
        limit, norm = _as(limit, self.value.dtype), self.norm()
        # Keras adds up squares, which overflow sooner than the norm.
        norm = tf.where(tf.math.is_finite(tf.square(norm)), norm, float("inf"))
        factor = limit / tf.maximum(norm, limit)
        return self.scaled(lambda v: v * factor)

    def all_finite(self) -> Tensor:
        """() bool: whether no entry is NaN or infinite.

        The product of the two sums of magnitudes bounds every entry. Only if it is not
        finite does the exact test run: both vectors are finite, and so is the product
        of their largest magnitudes, itself an entry.
        """
        factors = (self.left, self.right)
        if all((f.shape.num_elements() or _MANY) < _MANY for f in factors):
            return self._finite()
        sums = [dot(tf.abs(factor), tf.ones_like(factor)) for factor in factors]
        is_bounded = tf.math.is_finite(sums[0] * sums[1])
        yes = tf.constant(True)
        return tf.cond(is_bounded, lambda: yes, self._finite, name=xla.TAKEN)

    def _finite(self) -> Tensor:
        factors = (self.left, self.right)
        largest = [tf.reduce_max(tf.abs(factor)) for factor in factors]
        known: Any = [_all_finite(factor) for factor in factors]
        product = tf.math.is_finite(largest[0] * largest[1])
        return tf.logical_and(product, tf.logical_and(*known))

    def norm(self) -> Tensor:
        """() float, the Euclidean norm, from the two vectors.

        The entries are products, so the squares of one vector may overflow where the
        other vector is small or zero. Such vectors are scaled by powers of two.
        """
        squares = [dot(factor, factor) for factor in (self.left, self.right)]
        is_plain = tf.reduce_all(tf.stack(squares) < _PLAIN)  # not where one is NaN

        def plain() -> Tensor:
            return tf.sqrt(squares[0]) * tf.sqrt(squares[1])

        def by_scale() -> Tensor:
            (a, one), (b, other) = (_scaled_norm(f) for f in (self.left, self.right))
            return a * b * (one * other)

        return tf.cond(is_plain, plain, by_scale, name=xla.TAKEN)


Gradient = DenseGradient | RowsGradient | OuterGradient


def outer(inputs: Tensor, error: Tensor) -> OuterGradient:
    """The gradient of a kernel on one example: (1, n) inputs and (1, m) error."""
    return OuterGradient(
        tf.matmul(inputs, error, transpose_a=True), inputs, error, True
    )


def as_gradient(
    tensor: Tensor | tf.IndexedSlices | OuterGradient | None,
    factored_norms: bool = False,
) -> Gradient | None:
    """The gradient that a tape gives for a variable, in its kind; None stays None.

    Args:
        tensor: `tf.Tensor`, `tf.IndexedSlices` or None. An `OuterGradient` is
            returned as it is.
        factored_norms: whether the norm of a product of two vectors is formed from
            theirs. Clipping then differs from Keras's by rounding.
    """
    if tensor is None or isinstance(tensor, OuterGradient):
        return tensor
    if isinstance(tensor, tf.IndexedSlices):
        return RowsGradient(tensor.values, tensor.indices, tensor.dense_shape)
    factors = _factors(tensor)
    if factors is None:
        return DenseGradient(tensor)
    left, right = factors
    return OuterGradient(tensor, left, right, factored_norms)


def _factors(tensor: Tensor) -> list[Tensor] | None:
    # The two vectors where each entry is one product of an entry of each.
    # In half precision the norm of one factor overflows where the product's does not.
    # A constant of the model has no graph.
    if tensor.dtype not in (tf.float32, tf.float64):
        return None
    if tf.executing_eagerly() or getattr(tensor, "graph", None) is None:
        return None
    op = tensor.op
    while op.type in _SAME_ENTRIES:
        op = op.inputs[0].op
    if op.type != "MatMul":
        return None
    first = op.inputs[0].shape
    inner = first[0] if op.get_attr("transpose_a") else first[1]
    return list(op.inputs) if inner == 1 else None


def _as(limit: Tensor, dtype: tf.DType) -> Tensor:
    # From float64, so that it is rounded once.
    return tf.cast(tf.convert_to_tensor(limit, tf.float64), dtype)


def norm_of(vector: Tensor) -> Tensor:
    """() float, the Euclidean norm, also where the squares overflow."""
    scale, norm = _scaled_norm(vector)
    return scale * norm


def _scaled_norm(vector: Tensor) -> tuple[Tensor, Tensor]:
    # A power of two, and the norm of the vector over it, whose squares are small.
    scale = power_of_two(tf.reduce_max(tf.abs(vector)))
    small = vector / scale
    return scale, tf.sqrt(dot(small, small))


def power_of_two(size: Tensor) -> Tensor:
    """The largest power of two that is not above `size`; 1 for 0, infinity and NaN.

    Division by it is exact. It is at most a quarter of the largest power that the type
    has, so that its inverse is a normal number.

    Args:
        size: float32 or float64 of any shape, entries >= 0.
    """
    bits, integer, least, most = _EXPONENTS[size.dtype]
    exponent = tf.bitwise.bitwise_and(tf.bitcast(size, integer), bits)
    power = tf.clip_by_value(tf.bitcast(exponent, size.dtype), least, most)
    is_usable = tf.logical_and(size > 0, tf.math.is_finite(size))
    return tf.where(is_usable, power, tf.ones_like(power))


def dot(one: Tensor, other: Tensor) -> Tensor:
    """() float, the sum of the products of the entries of two tensors of one shape."""
    width = one.shape[-1] if one.shape.rank else 1
    if one.shape.num_elements() != width:
        # XLA:CPU adds whole rows at once, but the entries of a long vector one by one.
        one = tf.reduce_sum(tf.reshape(one * other, (-1, width)), 0)
        other = tf.ones_like(one)
    # As a product of matrices: XLA:CPU computes that in many partial sums, where it
    # would add the entries of a vector one after the other.
    row, column = tf.reshape(one, (1, -1)), tf.reshape(other, (-1, 1))
    return tf.reshape(tf.matmul(row, column), ())


def _all_finite(tensor: Tensor) -> Tensor:
    if not tensor.dtype.is_floating:
        return tf.constant(True)
    return tf.reduce_all(tf.math.is_finite(tensor))


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
