"""The positions of a window that moves over spatial axes, as slices of the input.

Shapes: `(n, *spatial, channels)`, all sizes known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor

MAX_POSITIONS = 64  # of a window; more would read or copy the input too often


def views(x: Tensor, axis: int, window: int, stride: int, dilation: int) -> list[Any]:
    """The slice of each position of the window along one axis; none if it is too short.

    Entry p has what position p of the window meets, one entry per step of the window.
    """
    reach = (window - 1) * dilation + 1
    if x.shape[axis] < reach:
        return []
    span = (x.shape[axis] - reach) // stride * stride + 1
    # Not by brackets, each of which makes constants of their own, and all are traced.
    rank = len(x.shape)
    steps = tf.constant([stride if a == axis else 1 for a in range(rank)])
    mask = 2**rank - 1 - 2**axis  # axes that are taken whole

    def at(offset: int) -> Any:
        return tf.constant([offset if a == axis else 0 for a in range(rank)])

    return [
        tf.strided_slice(
            x,
            at(p * dilation),
            at(p * dilation + span),
            steps,
            begin_mask=mask,
            end_mask=mask,
        )
        for p in range(window)
    ]


def blocks(x: Tensor, window: Sequence[int]) -> list[Any]:
    """The slice of each position of a window that moves by its own size, row by row."""
    parts = [x]
    for axis, k in enumerate(window, start=1):
        parts = [view for part in parts for view in views(part, axis, k, k, 1)]
    return parts


def side_by_side(views: Sequence[Tensor]) -> Tensor:
    """The views as one tensor, along the channels.

    TensorFlow's gradient of `tf.concat` is a slice per view. A model that
    differentiates twice needs the gradients of those slices: padded tensors, each a
    kernel of its own.
    """
    if len(views) == 1:
        return views[0]
    sizes = [view.shape[-1] for view in views]

    @tf.custom_gradient
    def joined(*views: Tensor) -> tuple[Any, Any]:
        return tf.concat(views, -1), lambda upstream: tf.split(upstream, sizes, -1)

    return joined(*views)


def same(
    spatial: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[list[int]]:
    """The paddings of `tf.pad` for `padding="same"`."""
    paddings = [[0, 0]]
    for n, k, s, d in zip(spatial, window, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        paddings.append([total // 2, total - total // 2])
    return [*paddings, [0, 0]]


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """One number per spatial axis, of an argument that may be one for all."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def is_static(x: Tensor) -> bool:
    """Whether tracing knows all sizes."""
    return x.shape.is_fully_defined()


def to_last(x: Tensor) -> Tensor:
    """`(n, channels, *spatial)` with the channels last."""
    rank = len(x.shape)
    return tf.transpose(x, (0, *range(2, rank), 1))


def to_first(x: Tensor) -> Tensor:
    """`(n, *spatial, channels)` with the channels first."""
    rank = len(x.shape)
    return tf.transpose(x, (0, rank - 1, *range(1, rank - 1)))
