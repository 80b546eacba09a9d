"""The walk over one batch: a pure loop, carry in, carry out.

    carry = tensors of model, optimizer, metric and seed variables
    while example_index < num_examples:
        carry = update(carry, example)      # forward, tape, update rule, metrics

No variable is written in here. The carry is committed when the whole batch is done, by
the compiled function at its end or by `_step`, so a batch is a transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus import (
    _examples,
    _keras,
    _kernel,
    _lowering,
    _nonfinite,
    _tables,
    _xla,
)
from keras_sgd_plus._group import Logs, Update, Values


def walk(
    update: Update,
    values: Values,
    leaves: Sequence[Any],
    order: Any,
    num_examples: tf.Tensor,
    log_specs: Logs,
    compiled: bool,
    is_halted: Any = None,
) -> tuple[Values, tuple[Logs, Any], Any]:
    """Updates once per full group.

    Args:
        values: the carry before the batch.
        leaves: tensors of the batch, `(num_examples or more, ...)`.
        order: positions to visit, `(num_examples or more,)` int32, or None for the
            order in which the examples were handed over.
        num_examples: () int32. A tensor bound costs nothing and spares a compilation
            per batch size.
        log_specs: as the function `log_specs` returns them; zeros are the logs of no
            group at all.
        compiled: whether XLA compiles the loop, and forms that suit it are used.
        is_halted: () bool, whether to change nothing, for a fault that came before;
            None where nobody looks for faults.

    Returns:
        The carry after the batch; the logs of the last group and the faults (or ());
        and the loop's fence, which has to leave the compiled function, or XLA would
        remove it.
    """
    size = update.optimizer.examples_per_update
    num_groups = num_examples // size
    lowered = compiled and _lowering.is_on()
    counter = values[update.carry.index(_keras.raw_iterations(update.optimizer))]
    one = tf.cast(counter >= 0, tf.int32)  # which XLA cannot know

    def cond_fn(i: Any, *carry: Any) -> Any:
        del carry
        return i < num_groups

    plan = update.plan if lowered and update.plan.places else None
    clocks = [] if plan is None else plan.clocks(_examples.count(leaves[0]) // size)

    def body_fn(
        i: Any, values: Values, logs: Logs, faults: Any, fence: Any, behind: Any
    ) -> Any:
        positions = i * size + tf.range(size, dtype=tf.int32)
        if order is not None:
            positions = tf.gather(order, positions)
        group = [_examples.take(leaf, positions) for leaf in leaves]
        with _lowering.active(one) if lowered else contextlib.nullcontext():
            tables = plan and _tables.Tables(plan, clocks, behind, values)
            values, (logs, faults) = walk_group(
                update, values, group, positions, logs, faults, lowered, tables
            )
        if compiled:
            graph = tf.compat.v1.get_default_graph()
            update.compiles = _xla.surely_takes(graph)
            fence = _kernel.fenced(graph, fence, i)
        behind = () if tables is None else tables.state
        return i + 1, values, logs, faults, fence, behind

    logs = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), log_specs)
    start = update.swapped(values) if lowered else list(values)
    faults = ()
    if is_halted is not None:
        rows = 2 if update.raises else _examples.count(leaves[0]) // size + 2
        faults = update.no_faults(values, rows, is_halted)
    behind = () if plan is None else plan.start(clocks)
    _, values, logs, faults, fence, behind = tf.while_loop(
        cond_fn,
        body_fn,
        (tf.constant(0), start, logs, faults, _kernel.new_fence(), behind),
        parallel_iterations=1,
    )
    if plan is not None:
        with _lowering.active(one):
            tables = _tables.Tables(plan, clocks, behind, values)
            tables.finish()
            values = tables.carried(values)
    values = update.swapped(values) if lowered else values
    return values, (logs, faults), fence


def walk_group(
    update: Update,
    values: Values,
    group: Sequence[Any],
    positions: Any,
    logs: Logs,
    faults: Any,
    lowered: bool = False,
    tables: _tables.Tables | None = None,
) -> tuple[Values, tuple[Logs, Any]]:
    """Updates once: with a full group, or what is left over of a batch.

    Args:
        update: the update.
        values: the carry's; where it is lowered, as `Update.swapped` gives them.
        group: tensors of examples, (k or fewer, ...).
        positions: (k or fewer,) int32, theirs in the batch.
        logs, faults: of the groups before; no faults, (), where nobody looks.
        lowered: whether forms that suit XLA are used.
        tables: where some are moved in parts.
    """
    values, new_logs, guard = update(values, group, lowered, faults or None, tables)
    if guard is not None:
        new_logs = guard.logs(new_logs, logs)
        faults = _nonfinite.note(faults, guard.cause, positions, guard.started)
    return values, (new_logs, faults)


def log_specs(update: Update, leaves: Sequence[Any]) -> Logs:
    """Shapes and dtypes of the logs of one update, or () where none are kept."""
    if not update.keeps_logs:
        return ()

    def first_logs(values: Values, leaves: Sequence[Any]) -> Logs:
        first = tf.zeros((1,), tf.int32)
        return update(values, [_examples.take(leaf, first) for leaf in leaves])[1]

    trace: Callable[..., Any] = tf.function(first_logs, autograph=False)
    specs = update.carry.specs()
    return trace.get_concrete_function(specs, list(leaves)).structured_outputs
