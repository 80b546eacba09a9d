"""The loop over blocks of examples, where kernels wait for their updates.

It stands around the loop over the examples of a block (`turns.Loop`). Each block begins
with the inputs of the layers whose kernels wait (`_lazy/blocks.py`): the model is
traced forward on one example until the layer multiplies its inputs. What comes before
that product depends on nothing that the block changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._forms import one_kernel, tracing
from keras_sgd_plus._lazy.block_plan import BlockPlace, takes
from keras_sgd_plus._lazy.blocks import Buffers, EnteredBlock, new_buffers
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.scope import Scope, TraceAgain
from keras_sgd_plus._loop.turns import Loop, Turn
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Tensor, Variable

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class _Met(BaseException):
    # The product is reached; Keras and models catch `Exception`.
    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


def block_inputs(
    context: Context,
    values: Values,
    examples_at: Callable[[Tensor], list[Tensor]],
    first: Tensor,
    num_groups: Tensor,
    memory: Sequence[Any],
) -> list[Tensor]:
    """Per kernel that waits, the inputs of its layer, (k, n); zeros past the batch.

    Args:
        context: what the update works with.
        values: the carry's.
        examples_at: gives the tensors of the examples of some numbers, (j,) int32, in
            the order of visits.
        first: () int32, the number of the block's first example.
        num_groups: () int32, the number of the example behind the last that is visited.
        memory: per kernel, (k, n), to be overwritten; () where it takes none.
    """
    size = context.blocks.size

    def inputs_at(numbers: Tensor, place: BlockPlace) -> Tensor:
        rows = _inputs_of(context, values, examples_at(numbers), place.variable)
        in_batch = tf.expand_dims(numbers < num_groups, 1)
        return tf.where(in_batch, rows, tf.zeros_like(rows))

    found = []
    for place, rows in zip(context.blocks.places, memory, strict=True):
        if place.of_data:
            found.append(inputs_at(first + tf.range(size), place))
            continue

        def body(
            r: Tensor, rows: Tensor, place: BlockPlace = place
        ) -> tuple[Tensor, Tensor]:
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
    context: Context, values: Values, group: Sequence[Tensor], kernel: Variable
) -> Tensor:
    # (k, n), of k examples.
    waiting = {id(place.variable) for place in context.blocks.places}

    def multiply(variable: Variable, inputs: Tensor) -> Tensor | None:
        if variable is kernel:
            raise _Met(inputs)
        if id(variable) not in waiting:
            return None
        rows = (inputs.shape[0], variable.shape[1])
        return tf.zeros(rows, inputs.dtype)  # leads nowhere here

    scope = Scope(context.carry, values, context.transposed)
    answers = context.answers(scope, group)
    with (
        context.replicas.alone(),
        private_tensorflow.inlined_functions(),
        scope,
        answers.open(),
        tracing.answering(multiply=multiply),
    ):
        try:
            keras_model.forward(context.model, answers.data[0])
        except _Met as met:
            if takes(kernel, met.inputs, examples.count(group[0])):
                return met.inputs
    # What was expected of the model is not so.
    raise TraceAgain(kernels={id(kernel): None})


class Memory(NamedTuple):
    """What the loop over blocks carries beside the carry."""

    fence: Tensor  # of the loop over the examples of a block
    buffers: Buffers


def block_body(
    loop: Loop, num_groups: Tensor, skips_bad: bool, turns: list[Turn]
) -> Callable[..., tuple[Any, ...]]:
    """The body of a loop over blocks; its first argument is the first group's number.

    Args:
        loop: without weights that wait.
        num_groups: () int32, the number of the group behind the last that is visited.
        skips_bad: whether groups that are not finite are left out.
        turns: gets the facts that each trace of a turn finds.
    """
    context = loop.context

    def examples_at(numbers: Tensor) -> list[Tensor]:
        order = loop.order
        return loop.group_at(numbers if order is None else tf.gather(order, numbers))

    def body(
        first: Tensor,
        values: Values,
        logs: Any,
        skips: Any,
        records: Any,
        fence: Tensor,
        memory: Memory,
    ) -> tuple[Any, ...]:
        buffers = memory.buffers
        with loop.forms():
            inputs = block_inputs(
                context, values, examples_at, first, num_groups, buffers.inputs
            )
            filled = buffers._replace(inputs=inputs)
            entered = EnteredBlock.of(
                context.blocks, values, filled, context.numbers, skips_bad
            )
        end = tf.minimum(first + entered.num_rows, num_groups)
        start = (first, entered.without(values), logs, skips, records, memory.fence)
        _, rest, logs, skips, records, inner_fence, state = tf.while_loop(
            lambda i, *_: i < end,
            replace(loop, entered=entered).body(turns),
            (*start, entered.start),
            parallel_iterations=1,
            name=xla.TAKEN,
        )
        spoiled = context.blocks.spoiled(turns[-1].changed)
        if spoiled:
            raise TraceAgain(kernels=spoiled)
        values = entered.finish(rest, state)
        graph = tf.compat.v1.get_default_graph()
        fence = one_kernel.fenced(graph, fence)
        if loop.compiled:
            surely = xla.surely_takes(graph) and turns[-1].surely_compiles
            turns[-1] = turns[-1]._replace(surely_compiles=surely)
        kept = [
            () if place.of_data else rows
            for place, rows in zip(context.blocks.places, inputs, strict=True)
        ]
        buffers = Buffers(kept, state.changes, buffers.zeros)
        memory = Memory(inner_fence, buffers)
        return end, values, logs, skips, records, fence, memory

    return body


def new_memory(context: Context) -> Memory:
    """The memory before the first block."""
    return Memory(one_kernel.new_fence(), new_buffers(context.blocks))
