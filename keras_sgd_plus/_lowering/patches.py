"""The product of an image's patches with a kernel: a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_sgd_plus._lowering import windows
from keras_sgd_plus._private.types import Tensor


def convolved(
    image: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The convolution of an image that is padded already, channels last.

    None where the window is longer than the image. Shapes: image `(n, *spatial,
    channels_in)`; kernel `(*window, channels, filters)`. There are
    `channels_in / channels` groups.
    """
    rank = len(strides)
    window, (channels, filters) = kernel.shape[:rank], kernel.shape[rank:]
    groups = image.shape[-1] // channels
    # From the last axis to the first, the views of the window's positions are put side
    # by side, so that in the end they are in the order of the kernel's entries.
    for axis in reversed(range(rank)):
        views = windows.views(
            image, axis + 1, window[axis], strides[axis], dilation[axis]
        )
        if not views:
            return None
        image = windows.side_by_side(views)
    return tf.reshape(_products(image, kernel, groups), (*image.shape[:-1], filters))


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
