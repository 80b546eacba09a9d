"""Convolution and max-pooling in forms that XLA:CPU compiles well.

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

from keras_sgd_plus._lowering import depthwise, scope, windows
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
    # Axis by axis, the views of the window's positions are put side by side, so that in
    # the end the window's last axis changes slowest.
    for axis, settings in enumerate(
        zip(window, strides, dilation_rate, strict=True), start=1
    ):
        views = windows.views(x, axis, *settings)
        if not views:
            return None
        x = windows.side_by_side(views)
    kernel = tf.transpose(kernel, (*reversed(range(rank)), rank, rank + 1))
    outputs = tf.reshape(_products(x, kernel, groups), (*x.shape[:-1], filters))
    return outputs if channels_last else windows.to_first(outputs)


def _products(patches: Tensor, kernel: Tensor, groups: int) -> Tensor:
    # (..., positions * groups * channels) and (*window, channels, filters) ->
    # (..., filters), a matrix product for each group.
    channels, filters = kernel.shape[-2:]
    positions = math.prod(kernel.shape[:-2])
    depth = positions * channels
    if groups == 1:
        kernel = tf.reshape(kernel, (depth, filters))
        return tf.matmul(tf.reshape(patches, (-1, depth)), kernel)
    rows = tf.reshape(patches, (-1, positions, groups, channels))
    rows = tf.reshape(tf.transpose(rows, (2, 0, 1, 3)), (groups, -1, depth))
    kernel = tf.reshape(kernel, (positions, channels, groups, filters // groups))
    kernel = tf.reshape(tf.transpose(kernel, (2, 0, 1, 3)), (groups, depth, -1))
    return tf.transpose(tf.matmul(rows, kernel), (1, 0, 2))


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
    sizes = [n * k for n, k in zip(counts, window, strict=True)]
    if scope.is_costly(x):
        x = scope.computed_once(x)  # and not for each position of a window
    cropped = x[(slice(None), *(slice(n) for n in sizes))]
    outputs = _first_maxima(cropped, window, counts)
    return outputs if channels_last else windows.to_first(outputs)


def _first_maxima(x: Tensor, window: Sequence[int], counts: Sequence[int]) -> Tensor:
    @tf.custom_gradient
    def maxima(x: Tensor) -> tuple[Any, Callable[[Any], Any]]:
        rank, depth = len(window), x.shape[-1]
        parts = [x]
        for axis, k in enumerate(window, start=1):
            views = (windows.views(part, axis, k, k, 1) for part in parts)
            parts = list(itertools.chain.from_iterable(views))
        top = parts[0]
        for part in parts[1:]:
            top = tf.maximum(top, part)

        def grad(upstream: Tensor) -> Tensor:
            taken, shares = None, []
            for part in parts:
                hit = tf.equal(part, top)
                if taken is not None:
                    hit, taken = hit & ~taken, taken | hit
                else:
                    taken = hit
                shares.append(tf.where(hit, upstream, tf.zeros_like(upstream)))
            # (n, *counts, *window, depth) -> (n, count, window, ..., depth)
            stacked = tf.stack(shares, rank + 1)
            stacked = tf.reshape(stacked, (-1, *counts, *window, depth))
            axes = [a for i in range(rank) for a in (1 + i, 1 + rank + i)]
            spread = tf.transpose(stacked, (0, *axes, 2 * rank + 1))
            return tf.reshape(spread, x.shape)

        return top, grad

    return maxima(x)
