"""Depthwise convolution as sums of shifted products.

Each channel has a window of its own, so there are no matrices to multiply. XLA:CPU's
native form is many times slower, its gradients above all, than to shift the input to
each position of the window, multiply it by that position's entry of each channel, and
add. The channels are the innermost axis, so these loops are vectorized.

Convolution and max-pooling in forms that XLA:CPU compiles well.

XLA's own gradients of convolutions and pooling are several times slower on a CPU, for
one example, than matrix products of patches and comparisons. The forms here compute
the same sums, up to the order of additions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._forms import pooled, tracing
from keras_sgd_plus._private.types import Tensor


def depthwise_conv(
    inputs: Tensor,
    kernel: Tensor,
    strides: Any,
    padding: str,
    channels_last: bool,
    dilation_rate: Any,
) -> Tensor:
    """Shifted inputs times the kernel, or None where the native form is to be used.

    Shapes: inputs `(n, *spatial, channels)` or `(n, channels, *spatial)`; kernel
    `(*window, channels, multiplier)`. Output channel `c * multiplier + m` is that of
    input channel c.
    """
    rank = len(inputs.shape) - 2
    window, (channels, multiplier) = kernel.shape[:rank], kernel.shape[rank:]
    x = inputs if channels_last else pooled.to_last(inputs)
    strides = pooled.per_axis(strides, rank)
    dilation = pooled.per_axis(dilation_rate, rank)
    if not pooled.is_static(x) or x.shape[-1] != channels:
        return None
    if math.prod(window) > pooled.MAX_POSITIONS:
        return None
    if max(strides) > 1 and max(dilation) > 1:
        return None  # rare, and some versions of Keras refuse it
    if padding == "same":
        x = tf.pad(x, pooled.same(x.shape[1:-1], window, strides, dilation))
    if any(
        n < (k - 1) * d + 1
        for n, k, d in zip(x.shape[1:-1], window, dilation, strict=True)
    ):
        return None
    if multiplier > 1:
        x = tf.repeat(x, multiplier, -1)
    # Not once per position of the window.
    x = tracing.computed_once(x)
    kernel = tf.reshape(kernel, (*window, channels * multiplier))
    outputs = _shifted_products(x, kernel, strides, dilation)
    return outputs if channels_last else pooled.to_first(outputs)


def _shifted_products(
    x: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    # The gradients are written out: those of slices would be sums of padded arrays.
    @tf.custom_gradient
    def products(x: Tensor, kernel: Tensor) -> tuple[Any, Callable[..., Any]]:
        def grad(upstream: Tensor) -> tuple[Any, Any]:
            upstream = tracing.computed_once(upstream)
            by_input = _spread_outputs(
                upstream, x.shape, kernel.shape[:-1], strides, dilation
            )
            ones = (1,) * len(strides)
            mirrored = tf.reverse(kernel, list(range(len(strides))))
            return (
                _sum(tracing.computed_once(by_input), mirrored, ones, dilation),
                _by_kernel(x, upstream, kernel.shape, strides, dilation),
            )

        return _sum(x, kernel, strides, dilation), grad

    return products(x, kernel)


def _sum(
    x: Tensor, kernel: Any, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    # Over the positions of the window, (*window, channels), which are taken apart by
    # one operation: a slice for each takes four, and all are traced.
    entries = tf.unstack(tf.reshape(kernel, (-1, kernel.shape[-1])))
    views = _shifted(x, kernel.shape[:-1], strides, dilation)
    first, *others = (a * b for a, b in zip(views, entries, strict=True))
    for term in others:
        first += term
    return first


def _by_kernel(
    x: Tensor,
    upstream: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    # As matrices with a row per position of the output, whose rows XLA:CPU adds fast.
    channels = shape[-1]
    rows = tf.reshape(upstream, (-1, channels))
    sums = [
        tf.reduce_sum(tf.reshape(view, (-1, channels)) * rows, 0)
        for view in _shifted(x, shape[:-1], strides, dilation)
    ]
    return tf.reshape(tf.stack(sums), shape)


def _spread_outputs(
    upstream: Tensor,
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    # With zeros between the entries for strides, and around them, so that the mirrored
    # window at each position of the input meets the outputs that the position went to.
    spread, spatial = upstream, upstream.shape[1:-1]
    if max(strides) > 1:
        sizes = [(n - 1) * s + 1 for n, s in zip(spatial, strides, strict=True)]
        full = (shape[0], *sizes, shape[-1])
        spread = tf.raw_ops.StridedSliceGrad(
            shape=full,
            begin=[0] * len(full),
            end=full,
            strides=(1, *strides, 1),
            dy=upstream,
        )
    paddings = [[0, 0]]
    for n, m, k, d in zip(
        shape[1:-1], spread.shape[1:-1], window, dilation, strict=True
    ):
        paddings.append([(k - 1) * d, n - m])
    return tf.pad(spread, [*paddings, [0, 0]])


def _shifted(
    x: Tensor, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    # What each position of the window meets as the window moves, the last axis first.
    parts = [x]
    for axis, settings in enumerate(
        zip(window, strides, dilation, strict=True), start=1
    ):
        views = (pooled.views_along(part, axis, *settings) for part in parts)
        parts = list(itertools.chain.from_iterable(views))
    return parts


def conv(
    inputs: Tensor,
    kernel: Tensor,
    strides: Any,
    padding: str,
    channels_last: bool,
    dilation_rate: Any,
) -> Tensor:
    """Patches times kernel, or None where the native form is to be used.

    Shapes: inputs `(n, *spatial, channels_in)` or `(n, channels_in, *spatial)`; kernel
    `(*window, channels, filters)`. There are `channels_in / channels` groups of
    channels, and each makes an equal share of the filters.
    """
    rank = len(inputs.shape) - 2
    window, (channels, filters) = kernel.shape[:rank], kernel.shape[rank:]
    x = inputs if channels_last else pooled.to_last(inputs)
    if not pooled.is_static(x) or math.prod(window) > pooled.MAX_POSITIONS:
        return None
    groups = x.shape[-1] // channels
    if channels == 1 < groups:  # a window of its own for each channel
        kernel = tf.reshape(kernel, (*window, groups, filters // groups))
        return depthwise_conv(
            inputs, kernel, strides, padding, channels_last, dilation_rate
        )
    strides = pooled.per_axis(strides, rank)
    dilation_rate = pooled.per_axis(dilation_rate, rank)
    if padding == "same":
        x = tf.pad(x, pooled.same(x.shape[1:-1], window, strides, dilation_rate))
    if tracing.is_costly(x):
        x = tracing.computed_once(x)
    outputs = pooled.convolved(x, kernel, strides, dilation_rate)
    if outputs is None:
        return None
    return outputs if channels_last else pooled.to_first(outputs)


def max_pool(
    inputs: Tensor, pool_size: Any, strides: Any, padding: str, channels_last: bool
) -> Tensor:
    """Maxima of windows that do not overlap, or None: use the native form.

    The gradient goes to the first maximum of a window, as in XLA and TensorFlow.
    """
    rank = len(inputs.shape) - 2
    window = pooled.per_axis(pool_size, rank)
    strides = window if strides is None else pooled.per_axis(strides, rank)
    x = inputs if channels_last else pooled.to_last(inputs)
    if strides != window or not pooled.is_static(x) or not x.dtype.is_floating:
        return None
    outside = [n % k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if any(outside) and padding == "same":
        return None
    counts = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if 0 in counts or math.prod(window) > pooled.MAX_POSITIONS:
        return None
    if tracing.is_costly(x):
        x = tracing.computed_once(x)  # and not for each position of a window
    outputs = _first_maxima(x, window, counts)
    return outputs if channels_last else pooled.to_first(outputs)


def _first_maxima(x: Tensor, window: tuple[int, ...], counts: Sequence[int]) -> Tensor:
    sizes = [n * k for n, k in zip(counts, window, strict=True)]
    outside = [[0, n - size] for n, size in zip(x.shape[1:-1], sizes, strict=True)]

    @tf.custom_gradient
    def maxima(x: Tensor) -> tuple[Any, Callable[[Any], Any]]:
        cropped = x[(slice(None), *(slice(n) for n in sizes))]
        parts = pooled.blocks(cropped, window)
        top = _top(parts)

        def grad(upstream: Tensor) -> Tensor:
            spread = _spread(parts, top, upstream, window)
            by_x = tf.pad(tf.reshape(spread, cropped.shape), [[0, 0], *outside, [0, 0]])
            places = _places(parts, top)
            pooled.note(by_x, pooled.Errors(upstream, top, places, window))
            return by_x

        return top, grad

    return maxima(x)


def _spread(
    parts: Sequence[Tensor], top: Tensor, upstream: Tensor, window: Sequence[int]
) -> Tensor:
    # The errors at the first maximum of each window, (n, count, window, ..., depth).
    rank, taken, shares = len(window), None, []
    for part in parts:
        hit = tf.equal(part, top)
        if taken is not None:
            hit, taken = hit & ~taken, taken | hit
        else:
            taken = hit
        shares.append(tf.where(hit, upstream, tf.zeros_like(upstream)))
    stacked = tf.stack(shares, rank + 1)
    counts, depth = top.shape[1:-1], top.shape[-1]
    stacked = tf.reshape(stacked, (-1, *counts, *window, depth))
    axes = [a for i in range(rank) for a in (1 + i, 1 + rank + i)]
    return tf.transpose(stacked, (0, *axes, 2 * rank + 1))


def _places(parts: Sequence[Tensor], top: Tensor) -> Tensor:
    # int32: which position of its window is the first maximum.
    places = tf.fill(top.shape, len(parts) - 1)
    for i in reversed(range(len(parts) - 1)):
        places = tf.where(tf.equal(parts[i], top), i, places)
    return places


def _top(parts: Sequence[Tensor]) -> Tensor:
    top = parts[0]
    for part in parts[1:]:
        top = tf.maximum(top, part)
    return top
