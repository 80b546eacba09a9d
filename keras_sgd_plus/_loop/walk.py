"""The walk over one batch: a pure loop, carry in, carry out.

The carry is committed when the whole batch is done, by the compiled function at its end
or by the step, so a batch is a transaction. The loop is one over groups (`turns.Loop`),
or one over blocks of examples around it (`walk_blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._forms import one_kernel, tracing
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.turns import Loop, Turn, update_and_list
from keras_sgd_plus._loop.update import Logs, update_once
from keras_sgd_plus._loop.walk_blocks import block_body, new_memory
from keras_sgd_plus._private.types import Structure, Tensor
from keras_sgd_plus._report.guard import Skips, no_skips
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
    groups: tuple[Tensor, Tensor],
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
        groups: () int32 each, the number of the first group, and of the one behind the
            last. Tensors cost nothing and spare a compilation per batch size.
        specs: as `first_specs` returns them; zeros are the logs of no group at all.
        compiled: whether XLA compiles the loop, and forms that suit it are used.
        skip_all: () bool, whether to change nothing, since a group that came before
            ended training; None under nonfinite="propagate".
    """
    first, num_groups = groups
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
        (first, *before),
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
