"""Keras's backend functions, by Keras's names and arguments, in their lowered forms.

Each returns None where the native form is to be used: for what the lowered form does
not cover, and where it was not measured to win.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._lowering import (
    channels,
    convolution,
    depthwise,
    layout,
    lookup,
    losses,
    products,
    random,
)
from keras_sgd_plus._private import keras_backend
from keras_sgd_plus._private.types import Tensor


def _by(forms: Any) -> Callable[..., Tensor]:
    # `conv` and `depthwise_conv` of Keras have the same arguments; `forms` is the
    # module whose `conv` stands in for one of them.
    def conv(
        inputs: Tensor,
        kernel: Tensor,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
    ) -> Tensor:
        inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        last = (data_format or keras.config.image_data_format()) == "channels_last"
        return forms.conv(inputs, kernel, strides, padding, last, dilation_rate)

    return conv


_conv = _by(convolution)
_depthwise_conv = _by(depthwise)


def _separable_conv(
    inputs: Tensor,
    depthwise_kernel: Tensor,
    pointwise_kernel: Tensor,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Tensor:
    outputs = _depthwise_conv(
        inputs, depthwise_kernel, strides, padding, data_format, dilation_rate
    )
    if outputs is None:
        return None
    return _conv(outputs, pointwise_kernel, data_format=data_format)


def _max_pool(
    inputs: Tensor,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    last = (data_format or keras.config.image_data_format()) == "channels_last"
    inputs = tf.convert_to_tensor(inputs)
    return convolution.max_pool(inputs, pool_size, strides, padding, last)


def _batch_normalization(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    axis: int,
    offset: Tensor = None,
    scale: Tensor = None,
    epsilon: float = 1e-3,
) -> Tensor:
    if axis not in (-1, len(x.shape) - 1):
        return None
    return channels.batch_normalization(x, mean, variance, offset, scale, epsilon)


def _moments(
    x: Tensor, axes: Any, keepdims: bool = False, synchronized: bool = False
) -> Tensor:
    if synchronized or x.dtype in (tf.float16, tf.bfloat16):
        return None
    axes = [axes] if isinstance(axes, int) else axes
    return channels.moments(tf.convert_to_tensor(x), axes, keepdims)


def _sparse_cross_entropy(
    target: Tensor, output: Tensor, from_logits: bool = False, axis: int = -1
) -> Tensor:
    target, logits = tf.convert_to_tensor(target), tf.convert_to_tensor(output)
    if target.shape.rank == logits.shape.rank and target.shape[-1] == 1:
        target = tf.squeeze(target, -1)
    is_static = logits.shape.is_fully_defined() and target.shape == logits.shape[:-1]
    is_plain = from_logits and axis == -1 and logits.op.type != "Softmax"
    if not (is_plain and is_static):
        return None
    if logits.shape.num_elements() < losses.MIN_ENTRIES:
        return None
    labels = tf.reshape(tf.cast(target, tf.int64), (-1,))
    rows = tf.reshape(logits, (-1, logits.shape[-1]))
    return tf.reshape(losses.sparse_cross_entropy(labels, rows), target.shape)


def _add(x1: Tensor, x2: Tensor) -> Tensor:
    x2 = tf.convert_to_tensor(x2) if isinstance(x2, keras.Variable) else x2
    if not (isinstance(x1, tf.Tensor) and isinstance(x2, tf.Tensor)):
        return None
    return channels.add_bias(x1, x2)


def _matmul(x1: Tensor, x2: Tensor) -> Tensor:
    matrix = x2
    if isinstance(x2, keras.Variable):
        found = products.matmul(x1, x2)
        if found is not None:
            return found
        matrix = tf.convert_to_tensor(x2)
    return layout.matmul(x1, matrix) if isinstance(x1, tf.Tensor) else None


def _dropout(
    inputs: Tensor, rate: Any, noise_shape: Any = None, seed: Any = None
) -> Tensor:
    if not isinstance(rate, float) or not 0 < rate < 1:
        return None
    inputs = tf.convert_to_tensor(inputs)
    shape = tf.shape(inputs)
    if noise_shape is not None:
        sizes = zip(tf.unstack(shape), noise_shape, strict=True)
        shape = tf.stack([actual if n is None else n for actual, n in sizes])
    elif inputs.shape.is_fully_defined():
        shape = inputs.shape
    seed = keras_backend.draw_seed(seed)
    scaled = inputs * tf.constant(1.0 / (1.0 - rate), inputs.dtype)
    kept = random.keep_mask(seed, rate, shape, inputs.dtype)
    return tf.where(kept, scaled, tf.zeros_like(scaled))


LOWERINGS = {
    "conv": _conv,
    "depthwise_conv": _depthwise_conv,
    "separable_conv": _separable_conv,
    "max_pool": _max_pool,
    "batch_normalization": _batch_normalization,
    "moments": _moments,
    "sparse_categorical_crossentropy": _sparse_cross_entropy,
    "add": _add,
    "matmul": _matmul,
    "dropout": _dropout,
    "take": lookup.take,
}
