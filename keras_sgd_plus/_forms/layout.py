"""Matrices that the loop carries transposed, and products with them.

For one example a Dense layer is a product of a vector with its kernel, and its update
adds an outer product to it. XLA:CPU vectorizes both along the rows of the kernel, which
Keras stores with one entry per output: ten, in the last layer of many models. Stored
with one row per output they are several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._forms import tracing
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Layer, Model, Tensor, Variable

# Of a kernel. Larger ones run at the speed of memory in either layout.
MAX_ENTRIES = 500_000
# Sums in another order would cross the rounding of these to the next number.
_HALF = ("float16", "bfloat16")
_SHORT = range(16, 64)  # lengths of dot products that gain from partial sums


def to_model_layout(matrix: Tensor) -> Tensor:
    """The transpose of a matrix of the loop; `matmul` knows it again."""
    view = tf.transpose(matrix)
    tracing.now.views[id(view)] = view, matrix
    return view


def to_loop_layout(view: Tensor) -> Tensor:
    """The matrix that `to_model_layout` was given for it, or else the transpose."""
    _, matrix = tracing.now.views.get(id(view), (None, None))
    return tf.transpose(view) if matrix is None else matrix


def transposed(
    model: Model,
    variables: Sequence[Variable],
    rows: Sequence[Sequence[Variable | None]],
) -> frozenset[int]:
    """Positions in `variables` of kernels to be carried transposed, and their slots.

    Args:
        model: a built model.
        variables: those of the carry.
        rows: per weight, that weight and its slots; None where there is no slot.
    """
    if any(layer.compute_dtype in _HALF for layer in keras_model.layers(model)):
        return frozenset()
    small = {i for i, k in kernels(model).items() if _is_small(k)}
    chosen = {id(v) for row in rows if id(row[0]) in small for v in row}
    return frozenset(i for i, v in enumerate(variables) if id(v) in chosen)


def kernels(model: Model) -> dict[int, Variable]:
    """The kernels of the plain Dense layers of a built model, by id."""
    return {id(k): k for layer in keras_model.layers(model) for k in _kernel(layer)}


def matmul(x1: Any, x2: Any) -> Tensor | None:
    """The product of rows, (..., inputs), with a matrix that is carried transposed.

    Or with a kernel whose updates wait, by those who keep it. None with any other. XLA
    would undo a transpose beside the product.
    """
    if isinstance(x2, keras.Variable):
        found = tracing.ask_product(x1, x2)
        if found is not None:
            return found
        x2 = tf.convert_to_tensor(x2)
    _, stored = tracing.now.views.get(id(x2), (None, None))
    if stored is None or not isinstance(x1, tf.Tensor):
        return None
    if x1.dtype != x2.dtype or x1.shape.rank < 2:
        return None
    rows = x1 if x1.shape.rank == 2 else tf.reshape(x1, (-1, x1.shape[-1]))
    if tracing.is_costly(rows):
        rows = tracing.computed_once(rows)
    elif x1.shape == stored.shape and x1.shape[0] == 1 and x1.shape[1] in _SHORT:
        return _dot(rows, stored)
    product = tf.matmul(rows, stored, transpose_b=True)
    if x1.shape.rank == 2:
        return product
    return tf.reshape(product, tf.concat([tf.shape(x1)[:-1], [x2.shape[-1]]], 0))


@tf.custom_gradient
def _dot(x: Tensor, y: Tensor) -> Any:
    """The product of two (1, n) as (1, 1), in four sums that do not wait for another.

    XLA:CPU adds fewer than 64 products one after the other.
    """
    products = x * y
    whole = x.shape[1] // 4 * 4
    sums = tf.reduce_sum(tf.reshape(products[:, :whole], (-1, 4)), 0, keepdims=True)
    pairs = sums[:, :2] + sums[:, 2:]
    total = pairs[:, :1] + pairs[:, 1:]
    for i in range(whole, x.shape[1]):
        total += products[:, i : i + 1]
    return total, lambda upstream: (upstream * y, upstream * x)


def _kernel(layer: Layer) -> list[Variable]:
    # The kernel of a plain Dense layer on vectors. Constraints and regularizers see the
    # kernel as a whole, with its axes; under mixed precision the layer sees a copy.
    dense = keras.layers.Dense
    if not isinstance(layer, dense) or type(layer).call is not dense.call:
        return []
    shape = (layer.get_build_config() or {}).get("input_shape") or ()
    if len(shape) != 2 or layer.compute_dtype != layer.variable_dtype:
        return []
    if layer.kernel_constraint is not None or layer.kernel_regularizer is not None:
        return []
    adapted = ("lora_enabled", "quantization_mode")
    if any(getattr(layer, name, None) for name in adapted):
        return []  # their kernel is a property, computed at each access
    kernel: Variable = layer.kernel
    is_plain = isinstance(kernel, keras.Variable)  # not the sum that LoRA makes
    return [kernel] if is_plain else []


def _is_small(kernel: Variable) -> bool:
    return math.prod(kernel.shape) <= MAX_ENTRIES
