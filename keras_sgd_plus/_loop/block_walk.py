"""A walk in blocks: in each, the updates of some kernels wait until its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._loop.block_inputs import block_inputs
from keras_sgd_plus._loop.example_update import ExampleUpdate
from keras_sgd_plus._loop.trace_again import TraceAgain
from keras_sgd_plus._loop.turn import Loop, Turn
from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._pending import Buffers, EnteredBlock, new_buffers
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor


class Memory(NamedTuple):
    """What the loop over blocks carries beside the carry."""

    fence: Tensor  # of the loop over the examples of a block
    buffers: Buffers


def block_body(
    loop: Loop, num_groups: Tensor, skips_bad: bool, turns: list[Turn]
) -> Callable[..., tuple[Any, ...]]:
    """The body of a loop over blocks; its first argument is the first group's number.

    Args:
        loop: without pending weights.
        num_groups: () int32, in the batch.
        skips_bad: whether groups that are not finite are left out.
        turns: gets the facts that each trace of a turn finds.
    """
    update = loop.update

    def examples_at(numbers: Tensor) -> list[Any]:
        order = loop.order
        return loop.group_at(numbers if order is None else tf.gather(order, numbers))

    def body(
        first: Any,
        values: Any,
        logs: Any,
        skips: Any,
        records: Any,
        fence: Any,
        memory: Memory,
    ) -> tuple[Any, ...]:
        buffers = memory.buffers
        with loop.forms():
            inputs = block_inputs(
                update, values, examples_at, first, num_groups, buffers.inputs
            )
            filled = buffers._replace(inputs=inputs)
            entered = EnteredBlock.of(
                update.blocks, values, filled, update.numbers, skips_bad
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
        spoiled = update.blocks.spoiled(turns[-1].changed)
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
            for place, rows in zip(update.blocks.places, inputs, strict=True)
        ]
        buffers = Buffers(kept, state.changes, buffers.zeros)
        memory = Memory(inner_fence, buffers)
        return end, values, logs, skips, records, fence, memory

    return body


def new_memory(update: ExampleUpdate) -> Memory:
    """The memory before the first block."""
    return Memory(one_kernel.new_fence(), new_buffers(update.blocks))
