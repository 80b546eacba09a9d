"""The walk over one batch: a pure loop, carry in, carry out.

The carry is committed when the whole batch is done, by the compiled function at its end
or by the step, so a batch is a transaction.

Where kernels wait (`_lazy/blocks.py`), a loop over blocks of examples is around the
loop over the examples of a block. Each block begins with the inputs of the layers whose
kernels wait: the model is traced forward on one example until the layer multiplies its
inputs. What comes before that product depends on nothing that the block changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._forms import one_kernel, tracing
from keras_sgd_plus._lazy.block_plan import BlockPlace, takes
from keras_sgd_plus._lazy.blocks import Buffers, EnteredBlock, new_buffers
from keras_sgd_plus._lazy.tables import EnteredTables
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.scope import Scope, TraceAgain
from keras_sgd_plus._loop.update import Logs, Shown, UpdateResult, update_once
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Structure, Tensor, Variable
from keras_sgd_plus._report.guard import Skips, no_skips, with_group
from keras_sgd_plus._report.records import Record, with_record
from keras_sgd_plus._rule.rule import all_numbers


class Walked(NamedTuple):
    """The result of a walk, over the groups of a batch so far.

    Attributes:
        changed: values by position in the carry, of those that may be new.
        logs: of the last group, or ().
        skips: the bad groups, or () under nonfinite="propagate".
        records: of the groups, or () where no log asks for them.
    """

    changed: dict[int, Tensor]
    logs: Logs
    skips: Skips | tuple[()]
    records: Record | tuple[()]


class WalkTrace(NamedTuple):
    """What the trace of a walk gives to whoever compiles it.

    Attributes:
        walked: the result.
        fence: of the loop. It has to leave the compiled function, or XLA would remove
            it; () without a loop.
        surely_compiles: whether XLA is known to take the loop's body.
    """

    walked: Walked
    fence: Structure = ()
    surely_compiles: bool = False


class Turn(NamedTuple):
    """Facts that the trace of one turn of the loop has found.

    Attributes:
        changed: positions in the carry of values that may be new.
        surely_compiles: whether XLA is known to take the body.
    """

    changed: frozenset[int]
    surely_compiles: bool


@dataclass(frozen=True)
class Loop:
    """The objects that stay the same from turn to turn.

    Attributes:
        context: given its numbers.
        leaves: tensors of the batch, (num_examples or more, ...).
        order: positions to visit, (num_examples or more,) int32, or None.
        compiled: whether XLA compiles the loop.
        lowered: whether forms that suit XLA are used.
        one: () int32 that is 1, which XLA cannot know.
        entered: weights whose updates wait, or None.
    """

    context: Context
    leaves: Sequence[Tensor]
    order: Tensor | None
    compiled: bool
    lowered: bool
    one: Tensor
    entered: EnteredTables | EnteredBlock | None

    def body(self, turns: list[Turn]) -> Callable[..., tuple[Any, ...]]:
        """The body of `tf.while_loop`; `turns` gets the facts of each trace."""

        def body_fn(*carry: Any) -> tuple[Any, ...]:
            carry, turn = self._turn(*carry)
            turns.append(turn)
            return carry

        return body_fn

    def _turn(
        self,
        i: Tensor,
        values: Values,
        logs: Logs,
        skips: Any,
        records: Any,
        fence: Tensor,
        lazy: Any,
    ) -> tuple[tuple[Any, ...], Turn]:
        # The loop's carry after group number i.
        positions = self.positions(i)
        group = self.group_at(positions)
        with self.forms():
            entered = self.entered
            shown = None if entered is None else entered.show(values, lazy)
            result, skips = update_and_list(
                self.context, values, group, positions, logs, skips, self.lowered, shown
            )
        records = with_record(records, i, result.record)
        surely_compiles = False
        if self.compiled:
            graph = tf.compat.v1.get_default_graph()
            surely_compiles = xla.surely_takes(graph)
            fence = one_kernel.fenced(graph, fence)
        done = (result.values, result.logs, skips, records, fence, result.lazy)
        carry = (i + 1, *done)
        return carry, Turn(result.changed, surely_compiles)

    def positions(self, i: Tensor) -> Tensor:
        """(k,) int32: where the examples of group number i are in the batch."""
        size = self.context.group_size
        if size == 1:  # fewer operations, which are traced and compiled
            positions = tf.reshape(i, (1,))
        else:
            positions = i * size + tf.range(size, dtype=tf.int32)
        return positions if self.order is None else tf.gather(self.order, positions)

    def group_at(self, positions: Tensor) -> list[Tensor]:
        """The tensors of the examples at these positions."""
        return [examples.gather_examples(leaf, positions) for leaf in self.leaves]

    def forms(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, Keras's functions take the forms that suit XLA, if any."""
        return tracing.active(self.one) if self.lowered else contextlib.nullcontext()


def update_and_list(
    context: Context,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    logs: Logs,
    skips: Any,
    lowered: bool = False,
    shown: Shown | None = None,
) -> tuple[UpdateResult, Skips | tuple[()]]:
    """One update; a bad group is listed, and the logs stay those of the group before.

    Arguments are those of `update_once`, and `positions`, (k or fewer,) int32, of the
    examples in the batch.
    """
    result = update_once(context, values, group, lowered, skips or None, shown)
    guard = result.guard
    if guard is not None:
        result = result._replace(logs=guard.logs(result.logs, logs))
        skips = with_group(skips, guard.cause, positions)
    return result, skips


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
        num_groups: () int32, the examples of the batch.
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

    x, _, _ = examples.pack(context.batch, list(group))
    with (
        context.replicas.alone(),
        private_tensorflow.inlined_functions(),
        Scope(context.carry, values, context.transposed),
        tracing.answering(multiply=multiply),
    ):
        try:
            keras_model.forward(context.model, x)
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
        num_groups: () int32, in the batch.
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


class Specs(NamedTuple):
    """Shapes and dtypes of what one update gives.

    Attributes:
        logs: or () where none are kept.
        outputs: of the model, a flat tuple; () where they are not recorded.
    """

    logs: Logs
    outputs: tuple[Any, ...]


class WalkMemory(NamedTuple):
    """Tensors that a walk begins with, made before the function that XLA compiles.

    A tensor of zeros in there would be a kernel, which takes longer to compile than to
    run.
    """

    fence: Tensor
    blocks: Any  # `Memory`, or () without blocks
    records: Record | tuple[()]  # tables, or () where no log asks for them

    @classmethod
    def of(
        cls, context: Context, compiled: bool, leaf: Tensor, specs: Specs
    ) -> WalkMemory:
        """The memory of a walk.

        Args:
            context: what the update works with.
            compiled: as for `walk`.
            leaf: a tensor of the batch.
            specs: as for `walk`.
        """
        in_blocks = _lowered(compiled) and bool(context.blocks.places)
        blocks = new_memory(context) if in_blocks else ()
        # One group more than are walked: that of what is left over.
        num_groups = examples.count(leaf) // context.group_size + 1
        records = context.no_records(num_groups, specs.outputs)
        return cls(one_kernel.new_fence(), blocks, records)


def _lowered(compiled: bool) -> bool:
    return compiled and tracing.is_on()


def walk(
    context: Context,
    memory: WalkMemory,
    values: Values,
    leaves: Sequence[Tensor],
    order: Tensor | None,
    num_examples: tf.Tensor,
    specs: Specs,
    compiled: bool,
    skip_all: Tensor | None = None,
) -> WalkTrace:
    """Updates once per full group.

    Args:
        context: given its numbers.
        memory: for a walk that is compiled, or not.
        values: the carry before the batch.
        leaves: tensors of the batch, `(num_examples or more, ...)`.
        order: positions to visit, `(num_examples or more,)` int32, or None for the
            order in which the examples were handed over.
        num_examples: () int32. A tensor bound costs nothing and spares a compilation
            per batch size.
        specs: as `first_specs` returns them; zeros are the logs of no group at all.
        compiled: whether XLA compiles the loop, and forms that suit it are used.
        skip_all: () bool, whether to change nothing, since a group that came before
            ended training; None under nonfinite="propagate".
    """
    num_groups = num_examples // context.group_size
    most_groups = examples.count(leaves[0]) // context.group_size
    lowered = _lowered(compiled)
    one = tf.cast(
        values[context.carry.index(context.variables.iterations)] >= 0, tf.int32
    )
    entered = context.tables.enter(most_groups, context.numbers) if lowered else None
    loop = Loop(context, leaves, order, compiled, lowered, one, entered)
    turns: list[Turn] = []  # one, or one per group where nothing is traced

    def cond_fn(i: Tensor, *carry: object) -> Tensor:
        return i < num_groups

    start = context.other_layout(values) if lowered else list(values)
    logs = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs.logs)
    skips = ()
    if skip_all is not None:
        rows = 2 if context.raises else most_groups + 2
        skips = no_skips(rows, context.group_size, skip_all)
    in_blocks = lowered and bool(context.blocks.places)
    if in_blocks:
        body_fn = block_body(loop, num_groups, skip_all is not None, turns)
        lazy = memory.blocks
    else:
        body_fn = loop.body(turns)
        lazy = () if entered is None else entered.start
    before = (start, logs, skips, memory.records, memory.fence, lazy)
    _, values, logs, skips, records, fence, lazy = tf.while_loop(
        cond_fn,
        body_fn,
        (tf.constant(0), *before),
        parallel_iterations=1,
    )
    if in_blocks:
        fence = fence, lazy.fence
    elif entered is not None:
        with loop.forms():
            values = entered.finish(values, lazy)
    values = context.other_layout(values) if lowered else values
    changed = {i: values[i] for i in sorted(set().union(*(t.changed for t in turns)))}
    surely_compiles = any(turn.surely_compiles for turn in turns)
    walked = Walked(changed, logs, skips, records)
    return WalkTrace(walked, fence, surely_compiles)


def walk_group(
    context: Context,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    number: Tensor,
    before: tuple[Any, Any, Any],
) -> WalkTrace:
    """Updates once, with the examples that are left over of a batch.

    Args:
        context: given its numbers.
        values: the carry's.
        group: tensors of examples, (k or fewer, ...).
        positions: (k or fewer,) int32, theirs in the batch.
        number: () int32, the group's in the order of visits.
        before: logs, bad groups and records of the groups before it.
    """
    logs, skips, records = before
    result, skips = update_and_list(context, values, group, positions, logs, skips)
    records = with_record(records, number, result.record)
    changed = {i: result.values[i] for i in sorted(result.changed)}
    return WalkTrace(Walked(changed, result.logs, skips, records))


def first_specs(context: Context, leaves: Sequence[Tensor]) -> Specs:
    """Shapes and dtypes of what an update gives, where the walk has to know them."""
    recorder = context.recorder
    records_outputs = recorder is not None and recorder.wanted.prediction
    if not (context.keeps_logs or records_outputs):
        return Specs((), ())

    def first(values: Values, leaves: Sequence[Tensor]) -> Any:
        positions = tf.zeros((context.group_size,), tf.int32)
        group = [examples.gather_examples(leaf, positions) for leaf in leaves]
        given = context.given(tf.zeros((len(all_numbers()),), tf.float64))
        result = update_once(given, values, group)
        record = result.record
        return result.logs, record.outputs if isinstance(record, Record) else ()

    trace: Any = tf.function(first, autograph=False)
    values = context.carry.specs()
    found = trace.get_concrete_function(values, list(leaves)).structured_outputs
    return Specs(*found)
