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


class WalkResult(NamedTuple):
    """The result of a walk, and facts that its trace found.

    Attributes:
        values: the carry's after it.
        logs: of the last group, or ().
        skips: the bad groups, or () under nonfinite="propagate".
        fence: of the loop. It has to leave the compiled function, or XLA would remove
            it; () without a loop.
        changed: positions in the carry of values that may be new.
        surely_compiles: whether XLA is known to take the loop's body.
    """

    values: Values
    logs: Logs
    skips: Any
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

    @classmethod
    def of(cls, update: ExampleUpdate, compiled: bool) -> WalkMemory:
        """The memory of a walk; `compiled` is as for `walk`."""
        in_blocks = _lowered(compiled) and bool(update.blocks.places)
        return cls(one_kernel.new_fence(), new_memory(update) if in_blocks else ())


def _lowered(compiled: bool) -> bool:
    return compiled and _lowering.is_on()


def walk(
    update: ExampleUpdate,
    memory: WalkMemory,
    values: Values,
    leaves: Sequence[Tensor],
    order: Tensor,
    num_examples: tf.Tensor,
    log_specs: Logs,
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
        log_specs: as the function `log_specs` returns them; zeros are the logs of no
            group at all.
        compiled: whether XLA compiles the loop, and forms that suit it are used.
        skip_all: () bool, whether to change nothing, since a group that came before
            ended training; None under
            nonfinite="propagate".
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
    logs = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), log_specs)
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
    _, values, logs, skips, fence, pending = tf.while_loop(
        cond_fn,
        body_fn,
        (tf.constant(0), start, logs, skips, memory.fence, pending),
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
    return WalkResult(values, logs, skips, fence, changed, surely_compiles)


def walk_group(
    update: ExampleUpdate,
    values: Values,
    group: Sequence[Tensor],
    positions: Tensor,
    logs: Logs,
    skips: Any,
) -> WalkResult:
    """Updates once, with the examples that are left over of a batch.

    Args:
        update: the update, given its numbers.
        values: the carry's.
        group: tensors of examples, (k or fewer, ...).
        positions: (k or fewer,) int32, theirs in the batch.
        logs: of the group before.
        skips: the bad groups before; () under
            nonfinite="propagate".
    """
    result, skips = update_and_list(update, values, group, positions, logs, skips)
    return WalkResult(result.values, result.logs, skips, (), result.changed, False)


def log_specs(update: ExampleUpdate, leaves: Sequence[Tensor]) -> Logs:
    """Shapes and dtypes of the logs of one update, or () where none are kept."""
    if not update.keeps_logs:
        return ()

    def first_logs(values: Values, leaves: Sequence[Tensor]) -> Logs:
        first = tf.zeros((1,), tf.int32)
        group = [examples.gather_examples(leaf, first) for leaf in leaves]
        given = update.given(tf.zeros((len(_rule.all_numbers()),), tf.float64))
        return update_once(given, values, group).logs

    trace: Callable[..., Any] = tf.function(first_logs, autograph=False)
    specs = update.carry.specs()
    return trace.get_concrete_function(specs, list(leaves)).structured_outputs
