"""The walk over one batch: a pure loop, carry in, carry out.

The carry is committed when the whole batch is done, by the compiled function at its end
or by the step, so a batch is a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _lowering, _rule
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.block_walk import block_body, new_memory
from keras_sgd_plus._loop.example_update import ExampleUpdate, Values
from keras_sgd_plus._loop.one_update import Logs, update_once
from keras_sgd_plus._loop.turn import Loop, Turn, update_and_list
from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._records import Record, with_record


class Specs(NamedTuple):
    """Shapes and dtypes of what one update gives.

    Attributes:
        logs: or () where none are kept.
        outputs: of the model, a flat tuple; () where they are not recorded.
    """

    logs: Logs
    outputs: tuple[Any, ...]


class Before(NamedTuple):
    """Results of the groups that came before one: fields of `WalkResult`."""

    logs: Logs
    skips: Any
    records: Any


class WalkResult(NamedTuple):
    """The result of a walk, and facts that its trace found.

    Attributes:
        values: the carry's after it.
        logs: of the last group, or ().
        skips: the bad groups, or () under nonfinite="propagate".
        records: of the groups, or () where no log asks for them.
        fence: of the loop. It has to leave the compiled function, or XLA would remove
            it; () without a loop.
        changed: positions in the carry of values that may be new.
        surely_compiles: whether XLA is known to take the loop's body.
    """

    values: Values
    logs: Logs
    skips: Any
    records: Any
    fence: Tensor
    changed: frozenset[int]
    surely_compiles: bool


class WalkMemory(NamedTuple):
    """Tensors that a walk begins with, made before the function that XLA compiles.

    A tensor of zeros in there would be a kernel, which takes longer to compile than to
    run.
    """

    fence: Tensor
    blocks: Any  # `block_walk.Memory`, or () without blocks
    records: Any  # tables, or () where no log asks for them

    @classmethod
    def of(
        cls, update: ExampleUpdate, compiled: bool, leaf: Tensor, specs: Specs
    ) -> WalkMemory:
        """The memory of a walk.

        Args:
            update: the update.
            compiled: as for `walk`.
            leaf: a tensor of the batch.
            specs: as for `walk`.
        """
        in_blocks = _lowered(compiled) and bool(update.blocks.places)
        blocks = new_memory(update) if in_blocks else ()
        # One group more than are walked: that of what is left over.
        num_groups = examples.count(leaf) // update.group_size + 1
        records = update.no_records(num_groups, specs.outputs)
        return cls(one_kernel.new_fence(), blocks, records)


def _lowered(compiled: bool) -> bool:
    return compiled and _lowering.is_on()


def walk(
    update: ExampleUpdate,
    memory: WalkMemory,
    values: Values,
    leaves: Sequence[Tensor],
    order: Tensor,
    num_examples: tf.Tensor,
    specs: Specs,
    compiled: bool,
    skip_all: Tensor = None,
) -> WalkResult:
    """Updates once per full group.

    Args:
        update: the update, given its numbers.
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
    num_groups = num_examples // update.group_size
    most_groups = examples.count(leaves[0]) // update.group_size
    lowered = _lowered(compiled)
    one = tf.cast(
        values[update.carry.index(update.variables.iterations)] >= 0, tf.int32
    )
    entered = (
        update.pending.enter(values, most_groups, update.numbers) if lowered else None
    )
    loop = Loop(update, leaves, order, compiled, lowered, one, entered)
    turns: list[Turn] = []  # one, or one per group where nothing is traced

    def cond_fn(i: Any, *carry: Any) -> Any:
        del carry
        return i < num_groups

    start = update.other_layout(values) if lowered else list(values)
    logs = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs.logs)
    skips = ()
    if skip_all is not None:
        rows = 2 if update.raises else most_groups + 2
        skips = update.no_skips(values, rows, skip_all)
    in_blocks = lowered and bool(update.blocks.places)
    if in_blocks:
        body_fn = block_body(loop, num_groups, skip_all is not None, turns)
        pending = memory.blocks
    else:
        body_fn = loop.body(turns)
        pending = () if entered is None else entered.start
    before = (start, logs, skips, memory.records, memory.fence, pending)
    _, values, logs, skips, records, fence, pending = tf.while_loop(
        cond_fn,
        body_fn,
        (tf.constant(0), *before),
        parallel_iterations=1,
    )
    if in_blocks:
        fence = fence, pending.fence
    elif entered is not None:
        with loop.forms():
            values = entered.finish(values, pending)
    values = update.other_layout(values) if lowered else values
    changed = frozenset[int]().union(*(turn.changed for turn in turns))
    surely_compiles = any(turn.surely_compiles for turn in turns)
    return WalkResult(values, logs, skips, records, fence, changed, surely_compiles)


def walk_group(
    update: ExampleUpdate,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    number: Tensor,
    before: Before,
) -> WalkResult:
    """Updates once, with the examples that are left over of a batch.

    Args:
        update: the update, given its numbers.
        values: the carry's.
        group: tensors of examples, (k or fewer, ...).
        positions: (k or fewer,) int32, theirs in the batch.
        number: () int32, the group's in the order of visits.
        before: logs, bad groups and records of the groups before it.
    """
    logs, skips, records = before
    result, skips = update_and_list(update, values, group, positions, logs, skips)
    records = with_record(records, number, result.record)
    done = (result.values, result.logs, skips, records)
    return WalkResult(*done, (), result.changed, False)


def first_specs(update: ExampleUpdate, leaves: Sequence[Tensor]) -> Specs:
    """Shapes and dtypes of what an update gives, where the walk has to know them."""
    recorder = update.recorder
    records_outputs = recorder is not None and recorder.wanted.prediction
    if not (update.keeps_logs or records_outputs):
        return Specs((), ())

    def first(values: Values, leaves: Sequence[Tensor]) -> Any:
        positions = tf.zeros((update.group_size,), tf.int32)
        group = [examples.gather_examples(leaf, positions) for leaf in leaves]
        given = update.given(tf.zeros((len(_rule.all_numbers()),), tf.float64))
        result = update_once(given, values, group)
        record = result.record
        return result.logs, record.outputs if isinstance(record, Record) else ()

    trace: Callable[..., Any] = tf.function(first, autograph=False)
    values = update.carry.specs()
    found = trace.get_concrete_function(values, list(leaves)).structured_outputs
    return Specs(*found)
