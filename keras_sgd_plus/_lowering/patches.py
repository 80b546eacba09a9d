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
    channels)`; kernel `(*window, channels, filters)`.
    """
    rank = len(strides)
    window, (channels, filters) = kernel.shape[:rank], kernel.shape[rank:]
    # Axis by axis, the views of the window's positions are put side by side, so that in
    # the end the window's last axis changes slowest.
    for axis, settings in enumerate(
        zip(window, strides, dilation, strict=True), start=1
    ):
        views = windows.views(image, axis, *settings)
        if not views:
            return None
        image = windows.side_by_side(views)
    sizes, depth = image.shape[:-1], math.prod(window) * channels
    kernel = tf.transpose(kernel, (*reversed(range(rank)), rank, rank + 1))
    product = tf.matmul(
        tf.reshape(image, (-1, depth)), tf.reshape(kernel, (depth, filters))
    )
    return tf.reshape(product, (*sizes, filters))
