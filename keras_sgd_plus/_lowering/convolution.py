"""Convolution and max-pooling in forms that XLA:CPU compiles well.

XLA's own gradients of convolutions and pooling are several times slower on a CPU, for
one example, than matrix products of patches and comparisons. The forms here compute
the same sums, up to the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._lowering import depthwise, pooled, scope, windows
from keras_sgd_plus._private.types import Tensor


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
    x = inputs if channels_last else windows.to_last(inputs)
    if not windows.is_static(x) or math.prod(window) > windows.MAX_POSITIONS:
        return None
    groups = x.shape[-1] // channels
    if channels == 1 < groups:  # a window of its own for each channel
        kernel = tf.reshape(kernel, (*window, groups, filters // groups))
        return depthwise.conv(
            inputs, kernel, strides, padding, channels_last, dilation_rate
        )
    strides = windows.per_axis(strides, rank)
    dilation_rate = windows.per_axis(dilation_rate, rank)
    if padding == "same":
        x = tf.pad(x, windows.same(x.shape[1:-1], window, strides, dilation_rate))
    if scope.is_costly(x):
        x = scope.computed_once(x)
    outputs = pooled.convolved(x, kernel, strides, dilation_rate)
    if outputs is None:
        return None
    return outputs if channels_last else windows.to_first(outputs)


def max_pool(
    inputs: Tensor, pool_size: Any, strides: Any, padding: str, channels_last: bool
) -> Tensor:
    """Maxima of windows that do not overlap, or None: use the native form.

    The gradient goes to the first maximum of a window, as in XLA and TensorFlow.
    """
    rank = len(inputs.shape) - 2
    window = windows.per_axis(pool_size, rank)
    strides = window if strides is None else windows.per_axis(strides, rank)
    x = inputs if channels_last else windows.to_last(inputs)
    if strides != window or not windows.is_static(x) or not x.dtype.is_floating:
        return None
    outside = [n % k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if any(outside) and padding == "same":
        return None
    counts = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if 0 in counts or math.prod(window) > windows.MAX_POSITIONS:
        return None
    if scope.is_costly(x):
        x = scope.computed_once(x)  # and not for each position of a window
    outputs = _first_maxima(x, window, counts)
    return outputs if channels_last else windows.to_first(outputs)


def _first_maxima(x: Tensor, window: tuple[int, ...], counts: Sequence[int]) -> Tensor:
    sizes = [n * k for n, k in zip(counts, window, strict=True)]
    outside = [[0, n - size] for n, size in zip(x.shape[1:-1], sizes, strict=True)]

    @tf.custom_gradient
    def maxima(x: Tensor) -> tuple[Any, Callable[[Any], Any]]:
        cropped = x[(slice(None), *(slice(n) for n in sizes))]
        parts = windows.blocks(cropped, window)
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
