"""Which matrices the loop carries transposed.

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

from keras_sgd_plus import _keras

MAX_ENTRIES = 500_000  # of a kernel; memory bounds what larger ones cost, either way
# Sums in another order would cross the rounding of these to the next number.
_HALF = ("float16", "bfloat16")


def transposed(model: Any, variables: Sequence[Any], slots: Any) -> frozenset[int]:
    """Positions in `variables` of kernels to be carried transposed, and their slots.

    Args:
        model: a built model.
        variables: those of the carry.
        slots: the `Slots` of the optimizer.
    """
    if any(layer.compute_dtype in _HALF for layer in _keras.layers(model)):
        return frozenset()
    kernels = {id(k) for layer in _keras.layers(model) for k in _kernel(layer)}
    chosen = {
        id(variable)
        for row in zip(*slots.columns, strict=True)
        if id(row[0]) in kernels
        for variable in row
    }
    return frozenset(i for i, v in enumerate(variables) if id(v) in chosen)


def _kernel(layer: Any) -> list[Any]:
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
        return []  # whose kernel is computed at each look
    kernel: Any = layer.kernel
    is_plain = isinstance(kernel, keras.Variable)  # not the sum that LoRA makes
    return [kernel] if is_plain and math.prod(kernel.shape) <= MAX_ENTRIES else []
