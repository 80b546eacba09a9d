"""Convolutions as matrix products of patches, or as sums of shifted products.

XLA's own gradients of convolutions are several times slower on a CPU, for one example,
than matrix products of patches. In a depthwise convolution each channel has a window of
its own, so there are no matrices to multiply. There it is fastest to shift the input to
each position of the window, multiply it by that position's entry of each channel, and
add. The channels are the innermost axis, so these loops are vectorized. The forms
compute the same sums, up to the order of additions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._forms import pooled, tracing
from keras_sgd_plus._private.types import Tensor, Variable


def conv(
    inputs: Tensor,
    kernel: Tensor | Variable,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor | None:
    """Patches times kernel, or None where the native form is to be used.

    Shapes: inputs `(n, *spatial, channels_in)` or `(n, channels_in, *spatial)`; kernel
    `(*window, channels, filters)`. There are `channels_in / channels` groups of
    channels, and each makes an equal share of the filters.
    """
    x, restored = pooled.channels_last(inputs, data_format)
    kernel, rank = tf.convert_to_tensor(kernel), len(x.shape) - 2
    window, (channels, filters) = kernel.shape[:rank], kernel.shape[rank:]
    if not pooled.is_static(x) or math.prod(window) > pooled.MAX_POSITIONS:
        return None
    groups = x.shape[-1] // channels
    if channels == 1 < groups:  # a window of its own for each channel
        kernel = tf.reshape(kernel, (*window, groups, filters // groups))
        return depthwise_conv(
            inputs, kernel, strides, padding, data_format, dilation_rate
        )
    strides = pooled.per_axis(strides, rank)
    dilation_rate = pooled.per_axis(dilation_rate, rank)
    if padding == "same":
        x = tf.pad(x, pooled.same(x.shape[1:-1], window, strides, dilation_rate))
    if tracing.is_costly(x):
        x = tracing.computed_once(x)
    outputs = pooled.convolved(x, kernel, strides, dilation_rate)
    return None if outputs is None else restored(outputs)


def separable_conv(
    inputs: Tensor,
    depthwise_kernel: Tensor | Variable,
    pointwise_kernel: Tensor | Variable,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor | None:
    """`depthwise_conv`, then `conv` with a window of one; None if either is."""
    outputs = depthwise_conv(
        inputs, depthwise_kernel, strides, padding, data_format, dilation_rate
    )
    if outputs is None:
        return None
    return conv(outputs, pointwise_kernel, data_format=data_format)


def depthwise_conv(
    inputs: Tensor,
    kernel: Tensor | Variable,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> Tensor | None:
    """Shifted inputs times the kernel, or None where the native form is to be used.

    Shapes: inputs `(n, *spatial, channels)` or `(n, channels, *spatial)`; kernel
    `(*window, channels, multiplier)`. Output channel `c * multiplier + m` is that of
    input channel c.
    """
    x, restored = pooled.channels_last(inputs, data_format)
    kernel, rank = tf.convert_to_tensor(kernel), len(x.shape) - 2
    window, (channels, multiplier) = kernel.shape[:rank], kernel.shape[rank:]
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
    return restored(_shifted_products(x, kernel, strides, dilation))


def _shifted_products(
    x: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    # The gradients are written out: those of slices would be sums of padded arrays.
    @tf.custom_gradient
    def products(x: Tensor, kernel: Tensor) -> Any:
        def grad(upstream: Tensor) -> tuple[Tensor, Tensor]:
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
    x: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
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
) -> list[Tensor]:
    # What each position of the window meets as the window moves, the last axis first.
    parts = [x]
    for axis, settings in enumerate(
        zip(window, strides, dilation, strict=True), start=1
    ):
        views = (pooled.views_along(part, axis, *settings) for part in parts)
        parts = list(itertools.chain.from_iterable(views))
    return parts
