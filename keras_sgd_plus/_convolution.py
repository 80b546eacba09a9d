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

from keras_sgd_plus import _lowering

_MAX_PATCH = 64  # kernel positions; more patches would copy the input too often


def conv(
    inputs: Any,
    kernel: Any,
    strides: Any,
    padding: str,
    channels_last: bool,
    dilation_rate: Any,
) -> Any:
    """Patches times kernel, or None where the native form is to be used.

    Shapes: inputs `(n, *spatial, channels)` or `(n, channels, *spatial)`; kernel
    `(*window, channels, filters)`.
    """
    rank = len(inputs.shape) - 2
    window, (channels, filters) = kernel.shape[:rank], kernel.shape[rank:]
    x = inputs if channels_last else _to_last(inputs)
    grouped = x.shape[-1] != channels
    if grouped or not _is_static(x) or math.prod(window) > _MAX_PATCH:
        return None
    strides, dilation_rate = _tuple(strides, rank), _tuple(dilation_rate, rank)
    if padding == "same":
        x = tf.pad(x, _same(x.shape[1:-1], window, strides, dilation_rate))
    patches = _patches(x, window, strides, dilation_rate)
    if not patches:
        return None
    sizes = patches[0].shape[:-1]
    columns = patches[0] if len(patches) == 1 else tf.concat(patches, -1)
    depth = math.prod(window) * channels
    product = tf.matmul(
        tf.reshape(columns, (-1, depth)), tf.reshape(kernel, (depth, filters))
    )
    outputs = tf.reshape(product, (*sizes, filters))
    return outputs if channels_last else _to_first(outputs)


def max_pool(
    inputs: Any, pool_size: Any, strides: Any, padding: str, channels_last: bool
) -> Any:
    """Maxima of windows that do not overlap, or None: use the native form.

    The gradient goes to the first maximum of a window, as in XLA and TensorFlow.
    """
    rank = len(inputs.shape) - 2
    window = _tuple(pool_size, rank)
    strides = window if strides is None else _tuple(strides, rank)
    x = inputs if channels_last else _to_last(inputs)
    if strides != window or not _is_static(x) or not x.dtype.is_floating:
        return None
    outside = [n % k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if any(outside) and padding == "same":
        return None
    counts = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if 0 in counts or math.prod(window) > _MAX_PATCH:
        return None
    sizes = [n * k for n, k in zip(counts, window, strict=True)]
    if _lowering.is_costly(x):
        x = _lowering.computed_once(x)  # and not for each position of a window
    cropped = x[(slice(None), *(slice(n) for n in sizes))]
    outputs = _first_maxima(cropped, window, counts)
    return outputs if channels_last else _to_first(outputs)


def _first_maxima(x: Any, window: Sequence[int], counts: Sequence[int]) -> Any:
    @tf.custom_gradient
    def maxima(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        rank, depth = len(window), x.shape[-1]
        parts = _patches(x, window, window, (1,) * rank)
        top = parts[0]
        for part in parts[1:]:
            top = tf.maximum(top, part)

        def grad(upstream: Any) -> Any:
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


def _patches(
    x: Any, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    # What each position of the window sees: views of the input, one per position.
    spatial = x.shape[1:-1]
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    if any(n < r for n, r in zip(spatial, reach, strict=True)):
        return []
    spans = [(n - r) // s * s + 1 for n, r, s in zip(spatial, reach, strides)]  # noqa: B905
    views = []
    for position in itertools.product(*map(range, window)):
        starts = [p * d for p, d in zip(position, dilation, strict=True)]
        cuts = [
            slice(a, a + n, s) for a, n, s in zip(starts, spans, strides, strict=True)
        ]
        views.append(x[(slice(None), *cuts)])
    return views


def _same(
    spatial: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[list[int]]:
    paddings = [[0, 0]]
    for n, k, s, d in zip(spatial, window, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        paddings.append([total // 2, total - total // 2])
    return [*paddings, [0, 0]]


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _is_static(x: Any) -> bool:
    return x.shape.is_fully_defined()


def _to_last(x: Any) -> Any:
    rank = len(x.shape)
    return tf.transpose(x, (0, *range(2, rank), 1))


def _to_first(x: Any) -> Any:
    rank = len(x.shape)
    return tf.transpose(x, (0, rank - 1, *range(1, rank - 1)))
