"""Sums, maxima and random masks over many numbers, as XLA:CPU computes them fast.

XLA:CPU takes the entries of a long row, or of a column of a wide matrix, one after the
other. A product with ones adds many of them at once, and the maximum of two halves of
a row compares many at once. Of a matrix with a row per position it adds up the rows in
many partial sums; over several axes, as biases and batch normalization do, it adds one
entry after the other. Cross-entropy with many classes looks its loss up, where the
native form adds up a matrix. Masks are drawn as TensorFlow draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._forms import pooled, tracing
from keras_sgd_plus._private import keras_optimizer, xla
from keras_sgd_plus._private.types import Tensor

MIN_WIDTH = 512  # entries of a row; shorter ones gain nothing
_NARROW = 128  # entries of a row whose maximum costs little
# Half precision keeps the native sums: nothing was measured there.
_DTYPES = (tf.float32, tf.float64)


def sum_of_rows(x: Tensor) -> Tensor:
    """The sum of each row; x is (n, width), the result (n, 1)."""
    if not _is_wide(x):
        return tf.reduce_sum(x, -1, keepdims=True)
    return tf.matmul(x, tf.ones((x.shape[-1], 1), x.dtype))


def sum_of_columns(x: Tensor) -> Tensor:
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


MIN_ENTRIES = 4_096  # of the logits; below, the native form costs little


def sparse_categorical_crossentropy(
    target: Tensor, output: Tensor, from_logits: bool = False, axis: int = -1
) -> Tensor | None:
    """As `tf.nn.sparse_softmax_cross_entropy_with_logits` under XLA, or None.

    The native form adds up a matrix that is zero but for the labels. NaN where a label
    is out of range, as there.

    Shapes: target `(...)` or `(..., 1)`, output `(..., classes)`, the result `(...)`.
    """
    target, logits = tf.convert_to_tensor(target), tf.convert_to_tensor(output)
    if target.shape.rank == logits.shape.rank and target.shape[-1] == 1:
        target = tf.squeeze(target, -1)
    is_static = logits.shape.is_fully_defined() and target.shape == logits.shape[:-1]
    is_plain = from_logits and axis == -1 and logits.op.type != "Softmax"
    if not (is_plain and is_static) or logits.shape.num_elements() < MIN_ENTRIES:
        return None
    labels = tf.reshape(tf.cast(target, tf.int64), (-1,))
    losses: Any = _cross_entropy(labels, _rows(logits))
    return tf.reshape(losses, target.shape)


@tf.custom_gradient
def _cross_entropy(labels: Tensor, logits: Tensor) -> Any:
    classes = logits.shape[-1]
    shifted = logits - largest_of_rows(logits)
    exps = tf.exp(shifted)
    totals = sum_of_rows(exps)
    is_valid = (labels >= 0) & (labels < classes)
    nan = tf.constant(float("nan"), logits.dtype)
    inside = tf.where(is_valid, labels, tf.zeros_like(labels))
    picked = tf.gather(shifted, inside, batch_dims=1)
    losses = tf.where(is_valid, tf.math.log(totals[:, 0]) - picked, nan)

    def grad(upstream: Tensor) -> tuple[None, Tensor]:
        target = tf.one_hot(inside, classes, dtype=logits.dtype)
        slopes = tf.where(is_valid, upstream, nan)
        slopes = slopes[:, None]
        # A quotient per row, where `exps / totals` would be one per entry.
        return None, slopes / totals * exps - slopes * target

    return losses, grad


_FEW_ROWS = 512  # at most, to sum the errors that pooling let pass and not the rows
_MANY_ROWS = 64  # to sum gradients of; fewer are computed twice as well


def moments(
    x: Tensor,
    axes: int | Sequence[int],
    keepdims: bool = False,
    synchronized: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance over all axes but the last, or None for other axes."""
    x = tf.convert_to_tensor(x)
    if synchronized or x.dtype in (tf.float16, tf.bfloat16) or not _is_static(x):
        return None
    rank = x.shape.rank
    axes = [axes] if isinstance(axes, int) else axes
    if sorted(a % rank for a in axes) != list(range(rank - 1)):
        return None
    mean, variance = tf.nn.moments(_rows(x), [0])
    shape = (1,) * (rank - 1) + x.shape[-1:] if keepdims else x.shape[-1:]
    return tf.reshape(mean, shape), tf.reshape(variance, shape)


def batch_normalization(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    axis: int,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    epsilon: float = 1e-3,
) -> Tensor | None:
    """As `tf.nn.batch_normalization` over all axes but the last, or None."""
    is_last = axis in (-1, len(x.shape) - 1)
    if not is_last or mean.shape != x.shape[-1:] or not _is_static(x):
        return None
    factor = tf.math.rsqrt(variance + epsilon)
    factor = factor if scale is None else factor * scale
    term = -mean * factor if offset is None else offset - mean * factor
    return tf.reshape(_affine(_rows(x), factor, term), x.shape)


@tf.custom_gradient
def _affine(rows: Tensor, factor: Tensor, term: Tensor) -> Any:
    def grad(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        upstream = tracing.computed_once(upstream)
        slopes = tf.reduce_sum(upstream * rows, 0)
        return upstream * factor, slopes, tf.reduce_sum(upstream, 0)

    return rows * factor + term, grad


def add(x1: Any, x2: Any) -> Tensor | None:
    """The sum with a vector along the last axis, or None where x2 is none."""
    x2 = tf.convert_to_tensor(x2) if isinstance(x2, keras.Variable) else x2
    if not (isinstance(x1, tf.Tensor) and isinstance(x2, tf.Tensor)):
        return None
    is_vector = x2.shape.num_elements() == x2.shape[-1:].num_elements()
    if not is_vector or x1.shape[-1:] != x2.shape[-1:] or x1.shape.rank < 3:
        return None
    if x1.dtype != x2.dtype or x2.shape.rank > x1.shape.rank or not _is_static(x1):
        return None
    return tf.reshape(_biased(_rows(x1), tf.reshape(x2, (-1,))), x1.shape)


@tf.custom_gradient
def _biased(rows: Tensor, bias: Tensor) -> Any:
    def grad(upstream: Tensor) -> tuple[Tensor, Tensor]:
        errors = pooled.errors_of(upstream)
        if errors is not None and rows.shape[0] <= _FEW_ROWS:
            return upstream, errors.sums()
        if rows.shape[0] >= _MANY_ROWS:
            upstream = tracing.computed_once(upstream)
        return upstream, sum_of_columns(upstream)

    return tf.nn.bias_add(rows, bias), grad


def _rows(x: Tensor) -> Tensor:
    return tf.reshape(x, (-1, x.shape[-1]))


def _is_static(x: Tensor) -> bool:
    return x.shape.is_fully_defined() and x.dtype.is_floating


# Philox4x32-10 (Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405).
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85


def dropout(
    inputs: Tensor,
    rate: float,
    noise_shape: Sequence[int | None] | None = None,
    seed: Any = None,
) -> Tensor | None:
    """Drops the elements that `stateless_dropout` drops; None with an odd rate."""
    if not isinstance(rate, float) or not 0 < rate < 1:
        return None
    inputs = tf.convert_to_tensor(inputs)
    shape = tf.shape(inputs)
    if noise_shape is not None:
        sizes = zip(tf.unstack(shape), noise_shape, strict=True)
        shape = tf.stack([actual if n is None else n for actual, n in sizes])
    elif inputs.shape.is_fully_defined():
        shape = inputs.shape
    seed = keras_optimizer.draw_seed(seed)
    scaled = inputs * tf.constant(1.0 / (1.0 - rate), inputs.dtype)
    with tf.name_scope(xla.TAKEN):
        # The numbers that TensorFlow draws depend on the type.
        if inputs.dtype == tf.float32 and isinstance(shape, tf.TensorShape):
            kept = uniform(seed, shape) >= rate
        else:
            kept = _native_mask(seed, rate, shape, inputs.dtype)
    return tf.where(kept, scaled, tf.zeros_like(scaled))


def _native_mask(
    seed: Tensor, rate: float, shape: Tensor | tf.TensorShape, dtype: tf.DType
) -> Tensor:
    # In a loop of one turn, which XLA makes one kernel of: outside of such a kernel it
    # computes the bits anew for every element. What is drawn depends on the turn, or
    # XLA would move the work out of the loop.
    def draw(i: Tensor) -> Tensor:
        ones = tf.ones(shape, dtype)
        own = seed + tf.cast(i, seed.dtype)
        return tf.not_equal(tf.nn.experimental.stateless_dropout(ones, rate, own), 0)

    return tf.while_loop(
        lambda i, _: tracing.is_below_one(i),
        lambda i, _: (i + 1, draw(i)),
        (tf.constant(0), tf.zeros(shape, tf.bool)),
        parallel_iterations=1,
    )[1]


def uniform(seed: Tensor, shape: tf.TensorShape) -> Tensor:
    """`tf.random.stateless_uniform(shape, seed)`, float32 from 0 to 1.

    The rounds are turns of a loop. Unrolled, XLA:CPU would compute all ten anew for
    each of the four numbers that they give.
    """
    count = shape.num_elements() or 0
    blocks = -(-count // 4)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    index = tf.range(blocks, dtype=tf.int32)
    low = counter[0] + tf.cast(index, tf.uint64)
    high = counter[1] + tf.cast(low < counter[0], tf.uint64)
    keys = tf.stack(_halves(key[0]))

    def body_fn(i: Tensor, keys: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
        low_0, high_0 = _halves(tf.cast(x[0], tf.uint64) * _MULTIPLIERS[0])
        low_1, high_1 = _halves(tf.cast(x[2], tf.uint64) * _MULTIPLIERS[1])
        mixed = _xor(high_1, x[1], keys[0]), low_1, _xor(high_0, x[3], keys[1]), low_0
        return i + 1, keys + tf.constant(_KEY_STEPS, tf.uint32), *mixed

    start = (tf.constant(0), keys, *_halves(low), *_halves(high))
    lanes = tf.while_loop(
        lambda i, *_: i < _ROUNDS, body_fn, start, parallel_iterations=1
    )[2:]
    bits = tf.reshape(tf.stack(lanes, 1), (4 * blocks,))[:count]
    mantissa = tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32))
    one = tf.constant(0x3F800000, tf.uint32)
    numbers = tf.bitcast(tf.bitwise.bitwise_or(mantissa, one), tf.float32) - 1.0
    return tf.reshape(numbers, shape)


def _halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    high = tf.bitwise.right_shift(numbers, tf.constant(32, tf.uint64))
    return tf.cast(numbers, tf.uint32), tf.cast(high, tf.uint32)


def _xor(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(a, b), c)
