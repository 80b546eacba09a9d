"""Max-pooling, and convolutions whose gradients visit only what it let pass.

A maximum passes its gradient to one position of its window, and ReLU passes it on where
that maximum is positive. So most errors of a convolution behind which its outputs are
max-pooled are zero: three quarters behind a 2 x 2 window, and more behind ReLU. A
matrix product would multiply by them all the same. Here a loop visits the others: the
error of filter f at position p adds

    error * patch of the input at p    to the gradient of the kernel's filter f
    error * filter f                   to the gradient of that patch

A patch is a slice of the input, so none is copied. XLA:CPU makes one kernel of the
loop, changes both sums in place, and vectorizes along a row of the patch.

The windows of both are slices of the input, one for each position in the window.
Shapes: `(n, *spatial, channels)`, all sizes known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._forms import tracing
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

MAX_POSITIONS = 64  # of a window; more would read or copy the input too often


def views_along(
    x: Tensor, axis: int, window: int, stride: int, dilation: int
) -> list[Tensor]:
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

    def at(offset: int) -> Tensor:
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


def blocks(x: Tensor, window: Sequence[int]) -> list[Tensor]:
    """The slice of each position of a window that moves by its own size, row by row."""
    parts = [x]
    for axis, k in enumerate(window, start=1):
        parts = [view for part in parts for view in views_along(part, axis, k, k, 1)]
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
    def joined(*views: Tensor) -> Any:
        return tf.concat(views, -1), lambda upstream: tf.split(upstream, sizes, -1)

    return joined(*views)


def same(
    spatial: Sequence[int] | tf.TensorShape,
    window: Sequence[int] | tf.TensorShape,
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[list[int]]:
    """The paddings of `tf.pad` for `padding="same"`."""
    paddings = [[0, 0]]
    for n, k, s, d in zip(spatial, window, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        paddings.append([total // 2, total - total // 2])
    return [*paddings, [0, 0]]


def per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number per spatial axis, of an argument that may be one for all."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def is_static(x: Tensor) -> bool:
    """Whether tracing knows all sizes."""
    return x.shape.is_fully_defined()


def channels_last(
    inputs: Tensor, data_format: str | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A tensor of Keras's `data_format` with the channels last, and the way back."""
    x = tf.convert_to_tensor(inputs)
    if (data_format or keras.config.image_data_format()) == "channels_last":
        return x, lambda outputs: outputs
    rank = len(x.shape)
    back = (0, rank - 1, *range(1, rank - 1))
    x = tf.transpose(x, (0, *range(2, rank), 1))
    return x, lambda outputs: tf.transpose(outputs, back)


def convolved_patches(
    image: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor | None:
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
        views = views_along(
            image, axis + 1, window[axis], strides[axis], dilation[axis]
        )
        if not views:
            return None
        image = side_by_side(views)
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


_SHORTEST_ROW = 16  # of a patch, in entries; shorter ones are not worth a turn
_MOST_BYTES = 1_000_000  # of an input and a kernel; larger ones leave the cache
_FIRST_CACHE = 32_768  # bytes; where a kernel is larger, filter goes after filter


class Errors(NamedTuple):
    """Errors of a layer's outputs, of which max-pooling let few pass.

    Attributes:
        passed: the gradient of the loss by the maxima, (n, *counts, filters).
        top: the maxima, as `passed`.
        places: int32, as `passed`: of each maximum, its position in the window,
            counted with the last axis fastest.
        window: of the pooling.
    """

    passed: Tensor
    top: Tensor
    places: Tensor
    window: tuple[int, ...]

    def sums(self) -> Tensor:
        """(filters,), over all positions."""
        rows = tf.reshape(self.once(), (-1, self.passed.shape[-1]))
        return tf.reduce_sum(rows, 0)

    def once(self) -> Tensor:
        """`passed`, which XLA computes once."""
        return tracing.computed_once(self.passed)


def errors_of(tensor: Tensor) -> Errors | None:
    """What was noted of a tensor, or of the one that it was computed from by ReLU.

    None where a reshape has given it other positions, or other filters, since.
    """
    is_rectified, shape = False, tensor.shape
    while tf.is_symbolic_tensor(tensor):
        _, errors = tracing.now.errors.get(id(tensor), (None, None))
        if errors is not None:
            rows = [math.prod(tensor.shape[:-1]), tensor.shape[-1]]
            if shape not in (tensor.shape, rows):
                return None
            return _rectified(errors) if is_rectified else errors
        if tensor.op.type not in ("Identity", "ReluGrad", "Reshape"):
            return None
        is_rectified |= tensor.op.type == "ReluGrad"
        tensor = tensor.op.inputs[0]
    return None


def _rectified(errors: Errors) -> Errors:
    zeros = tf.zeros_like(errors.passed)
    return errors._replace(passed=tf.where(errors.top > 0, errors.passed, zeros))


def max_pool(
    inputs: Tensor,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor | None:
    """Maxima of windows that do not overlap, or None: use the native form.

    The gradient goes to the first maximum of a window, as in XLA and TensorFlow.
    """
    x, restored = channels_last(inputs, data_format)
    rank = len(x.shape) - 2
    window = per_axis(pool_size, rank)
    strides = window if strides is None else per_axis(strides, rank)
    if strides != window or not is_static(x) or not x.dtype.is_floating:
        return None
    outside = [n % k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if any(outside) and padding == "same":
        return None
    counts = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    if 0 in counts or math.prod(window) > MAX_POSITIONS:
        return None
    if tracing.is_costly(x):
        x = tracing.computed_once(x)  # and not for each position of a window
    return restored(_first_maxima(x, window, counts))


def _first_maxima(x: Tensor, window: tuple[int, ...], counts: Sequence[int]) -> Tensor:
    sizes = [n * k for n, k in zip(counts, window, strict=True)]
    outside = [[0, n - size] for n, size in zip(x.shape[1:-1], sizes, strict=True)]

    @tf.custom_gradient
    def maxima(x: Tensor) -> Any:
        cropped = x[(slice(None), *(slice(n) for n in sizes))]
        parts = blocks(cropped, window)
        top = functools.reduce(tf.maximum, parts)

        def grad(upstream: Tensor) -> Tensor:
            spread = _spread(parts, top, upstream, window)
            by_x = tf.pad(tf.reshape(spread, cropped.shape), [[0, 0], *outside, [0, 0]])
            places = _places(parts, top)
            errors = Errors(upstream, top, places, window)
            tracing.now.errors[id(by_x)] = by_x, errors
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


def convolved(
    image: Tensor, kernel: Tensor, strides: Sequence[int], dilation: Sequence[int]
) -> Tensor | None:
    """As `convolved_patches`; its gradients visit the errors that max-pooling let pass.

    A tensor of errors is known as long as it goes through ReLU and a bias at most.
    """
    row = math.prod(kernel.shape[-3:-1])
    entries = math.prod(image.shape) + math.prod(kernel.shape)
    is_small = entries * image.dtype.size <= _MOST_BYTES
    has_groups = image.shape[-1] != kernel.shape[-2]
    if row < _SHORTEST_ROW or not is_small or max(dilation) > 1 or has_groups:
        return convolved_patches(image, kernel, strides, dilation)
    fixed = strides, dilation

    @tf.custom_gradient
    def product(image: Tensor, kernel: Tensor) -> Any:
        # Persistent: a model that differentiates twice asks for its gradients twice.
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([image, kernel])
            outputs = convolved_patches(image, kernel, *fixed)

        def grad(upstream: Tensor) -> tuple[Tensor, Tensor]:
            errors = errors_of(upstream)
            if errors is None:
                return tape.gradient(outputs, [image, kernel], upstream)
            return _gradients(
                image, kernel, errors.once(), strides, errors.places, errors.window
            )

        return outputs, grad

    return product(image, kernel)


def _gradients(
    image: Tensor,
    kernel: Tensor,
    error: Tensor,
    strides: Sequence[int],
    places: Tensor,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    # By the image and by the kernel. Both are bilinear: so are their own gradients.
    fixed = strides, places, window
    ones = (1,) * len(window)

    @tf.custom_gradient
    def found(*arguments: Tensor) -> Any:
        image, kernel, error = arguments

        def grad(by_image: Tensor, by_kernel: Tensor) -> tuple[Tensor, ...]:
            first = convolved_patches(by_image, kernel, strides, ones)
            second = convolved_patches(image, by_kernel, strides, ones)
            by_error = _at_places(first + second, places, window)
            return *_gradients(by_image, by_kernel, error, *fixed), by_error

        return _by_visits(image, kernel, error, *fixed), grad

    return found(image, kernel, error)


def _at_places(outputs: Tensor, places: Tensor, window: Sequence[int]) -> Tensor:
    sizes = [n * k for n, k in zip(places.shape[1:-1], window, strict=True)]
    cropped = outputs[(slice(None), *(slice(n) for n in sizes))]
    parts = enumerate(blocks(cropped, window))
    zeros = tf.zeros(places.shape, outputs.dtype)
    return tf.add_n([tf.where(tf.equal(places, i), x, zeros) for i, x in parts])


def _by_visits(
    image: Tensor,
    kernel: Tensor,
    error: Tensor,
    strides: Sequence[int],
    places: Tensor,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    rank, channels = len(window), image.shape[-1]
    filters, sizes = kernel.shape[-1], kernel.shape[:rank]
    # A row of the image, and of a patch, is one axis: the channels of its pixels.
    rows = tf.reshape(image, (*image.shape[:-2], -1))
    shape = (1, *sizes[:-1], sizes[-1] * channels)
    to_front = (rank + 1, *range(rank + 1))
    matrices = tf.reshape(tf.transpose(kernel, to_front), (filters, *shape[1:]))
    starts = _starts(places, window, strides, channels)
    numbers = np.broadcast_to(np.arange(filters, dtype="int32"), places.shape)
    columns: list[Any] = [error, numbers, *starts]
    if math.prod(kernel.shape) * kernel.dtype.size > _FIRST_CACHE:
        columns = [tf.transpose(column, to_front) for column in columns]
    columns = [tf.reshape(column, (-1,)) for column in columns]
    with tf.name_scope(xla.TAKEN):
        by_image, by_kernel = _visit(columns, rows, matrices, shape)
    by_kernel = tf.reshape(by_kernel, (filters, *sizes, channels))
    by_kernel = tf.transpose(by_kernel, (*range(1, rank + 2), 0))
    return tf.reshape(by_image, image.shape), by_kernel


def _starts(
    places: Tensor, window: Sequence[int], strides: Sequence[int], channels: int
) -> list[Tensor]:
    # Per axis of the rows, where the patch of each maximum begins.
    grid = np.indices(places.shape, dtype="int32")
    starts: list[Any] = []
    left = places
    for axis in reversed(range(len(window))):
        k = window[axis]
        start = (grid[axis + 1] * k + left % k) * strides[axis]
        starts.insert(0, start if starts else start * channels)
        left //= k
    return [grid[0], *starts]


def _visit(
    columns: Sequence[Tensor], image: Tensor, kernel: Tensor, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    visits, count = _nonzero(columns[0])

    def body_fn(i: Tensor, by_image: Tensor, by_kernel: Tensor) -> tuple[Tensor, ...]:
        j = _entry(visits, i)
        error, number, *start = (_entry(column, j) for column in columns)
        at_filter = [number, *[tf.constant(0)] * (len(shape) - 1)]
        patch = xla.dynamic_slice(image, start, shape)
        weights = xla.dynamic_slice(kernel, at_filter, shape)
        by_kernel = _added(by_kernel, error * patch, at_filter)
        by_image = _added(by_image, error * weights, start)
        return i + 1, by_image, by_kernel

    start = tf.constant(0), tf.zeros_like(image), tf.zeros_like(kernel)
    return tf.while_loop(
        lambda i, *_: i < count, body_fn, start, parallel_iterations=1
    )[1:]


def _nonzero(error: Tensor) -> tuple[Tensor, Tensor]:
    # Positions of entries that are not zero, at the front of a vector; their count.
    def body_fn(i: Tensor, count: Tensor, found: Any) -> tuple[Tensor, ...]:
        found = keras.ops.slice_update(found, tf.stack([count]), tf.reshape(i, (1,)))
        return i + 1, count + tf.cast(_entry(error, i) != 0, tf.int32), found

    total = error.shape[0]
    start = tf.constant(0), tf.constant(0), tf.zeros((total,), tf.int32)
    _, count, found = tf.while_loop(
        lambda i, *_: i < total, body_fn, start, parallel_iterations=1
    )
    return found, count


def _entry(vector: Tensor, i: Tensor) -> Tensor:
    return tf.reshape(xla.dynamic_slice(vector, [i], [1]), ())


def _added(total: Tensor, part: Tensor, start: Sequence[Tensor | int]) -> Any:
    old = xla.dynamic_slice(total, start, part.shape)
    return keras.ops.slice_update(total, tf.stack(start), old + part)
