"""The inputs of a Dense layer, for all examples of a block before its updates begin.

The model is traced forward on one example until the layer multiplies its inputs: what
comes before that product depends on nothing that the block changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.example_update import ExampleUpdate, Values
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._loop.trace_again import TraceAgain
from keras_sgd_plus._lowering import products
from keras_sgd_plus._pending import BlockPlace, takes
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Tensor

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class _Met(BaseException):
    # The product is reached; Keras and models catch `Exception`.
    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


def block_inputs(
    update: ExampleUpdate,
    values: Values,
    examples_at: Callable[[Tensor], list[Tensor]],
    first: Tensor,
    num_groups: Tensor,
    memory: Sequence[Tensor],
) -> list[Tensor]:
    """Per kernel that waits, the inputs of its layer, (k, n); zeros past the batch.

    Args:
        update: the update.
        values: the carry's.
        examples_at: gives the tensors of the examples of some numbers, (j,) int32, in
            the order of visits.
        first: () int32, the number of the block's first example.
        num_groups: () int32, the examples of the batch.
        memory: per kernel, (k, n), to be overwritten; () where it takes none.
    """
    size = update.blocks.size

    def inputs_at(numbers: Tensor, place: BlockPlace) -> Tensor:
        rows = _inputs_of(update, values, examples_at(numbers), place.variable)
        in_batch = tf.expand_dims(numbers < num_groups, 1)
        return tf.where(in_batch, rows, tf.zeros_like(rows))

    found = []
    for place, rows in zip(update.blocks.places, memory, strict=True):
        if place.of_data:
            found.append(inputs_at(first + tf.range(size), place))
            continue

        def body(r: Any, rows: Tensor, place: BlockPlace = place) -> Any:
            row = inputs_at(tf.reshape(first + r, (1,)), place)
            return r + 1, put(rows, tf.stack([r, 0]), row)

        _, rows = tf.while_loop(
            lambda r, _: r < size,
            body,
            (tf.constant(0), rows),
            parallel_iterations=1,
            name=xla.TAKEN,
        )
        found.append(rows)
    return found


def _inputs_of(
    update: ExampleUpdate, values: Values, group: Sequence[Tensor], kernel: Any
) -> Tensor:
    # (k, n), of k examples.
    waiting = {id(place.variable) for place in update.blocks.places}

    def multiply(variable: Any, inputs: Tensor) -> Any:
        if variable is kernel:
            raise _Met(inputs)
        if id(variable) not in waiting:
            return None
        rows = (inputs.shape[0], variable.shape[1])
        return tf.zeros(rows, inputs.dtype)  # leads nowhere here

    x, _, _ = examples.pack(update.batch, list(group))
    with (
        strategy.alone(),
        private_tensorflow.inlined_functions(),
        Scope(update.carry, values, update.transposed),
        products.answered_by(multiply),
    ):
        try:
            keras_model.forward(update.model, x)
        except _Met as met:
            if takes(kernel, met.inputs, examples.count(group[0])):
                return met.inputs
    # What was expected of the model is not so.
    raise TraceAgain(kernels={id(kernel): None})
