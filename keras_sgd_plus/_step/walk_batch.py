"""Walks one batch in its order: all full groups in a loop, then the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _lowering
from keras_sgd_plus._distribute import replicas
from keras_sgd_plus._loop import (
    Before,
    ExampleUpdate,
    Specs,
    WalkMemory,
    WalkResult,
    examples,
    first_specs,
    walk,
    walk_group,
)
from keras_sgd_plus._private.types import Structure, Tensor
from keras_sgd_plus._step import compiled, model_checks, numbers, padding, warn
from keras_sgd_plus._step.compiled import How, RunResult
from keras_sgd_plus._step.order import visiting_order


class WalkedBatch(NamedTuple):
    """The result of a walk over one batch.

    Attributes:
        changed: values by position in the carry, to be committed.
        logs: of the last group, or ().
        skips: the bad groups, or () under nonfinite="propagate".
        records: of the groups, or () where no log asks for them.
        order: (num_examples,) int32, the positions that were visited, or None for the
            order in which they were handed over.
    """

    changed: dict[int, Tensor]
    logs: Structure
    skips: Tensor
    records: Any
    order: Tensor


class _Batch(NamedTuple):
    # A batch and the order of its visits.
    leaves: Sequence[Tensor]
    order: Tensor  # (num_examples,) int32, or None
    num_examples: Tensor  # an int or () int32


def walk_batch(
    update: ExampleUpdate,
    num_examples: Tensor,
    start: Mapping[int, Tensor],
    skip_all: Tensor,
) -> WalkedBatch:
    """Walks the batch of an update.

    Args:
        update: the update, which has the batch.
        num_examples: an int or () int32.
        start: values by position in the carry where a replica does not start from the
            variables.
        skip_all: () bool, whether an earlier batch ended training; None under
            nonfinite="propagate".
    """
    leaves = examples.flat(update.batch)
    specs = first_specs(update, leaves)
    use_xla = compiled.wants_xla(update.optimizer.jit_compile, update.model, leaves)
    _warn(update, use_xla, num_examples)
    batch = _Batch(leaves, _order(update, num_examples), num_examples)
    size = update.group_size
    rest = num_examples % size
    is_whole = size == 1 or (isinstance(rest, int) and not rest)
    how = How.of(use_xla, update.optimizer.jit_compile, is_last=is_whole)
    full = _full_groups(update, batch, start, skip_all, specs, how)
    walked = _walked(full)
    if is_whole:
        return walked._replace(order=batch.order)

    def with_rest() -> WalkedBatch:
        return _short_group(update, batch, rest, start, full)

    if isinstance(rest, int):
        walked = with_rest()
    else:
        walked = tf.cond(rest > 0, with_rest, lambda: walked)
    return walked._replace(order=batch.order)


def _walked(done: RunResult) -> WalkedBatch:
    return WalkedBatch(done.changed, done.logs, done.skips, done.records, ())


def _warn(update: ExampleUpdate, use_xla: bool, num_examples: Tensor) -> None:
    model, sample_weight = update.model, update.batch[2]
    for topic, text in model_checks.doubts(model, sample_weight, update.group_size):
        warn.once(model, topic, text)
    if update.group_size > 1 and not model.jit_compile:
        warn.watch_groups(model, update.group_size, num_examples)
    text = update.pending.warning()
    if text is not None and use_xla and _lowering.is_on():
        warn.once(model, "tables", text)


def _warn_of_statistics(update: ExampleUpdate, result: WalkResult) -> None:
    # What a layer does in training shows only when the walk has been traced.
    if update.group_size > 1:
        return
    found = model_checks.normalising(update.model, update.carry, result.changed)
    for topic, text in found:
        warn.once(update.model, topic, text)


def _order(update: ExampleUpdate, num_examples: Tensor) -> Any:
    if update.optimizer.order != "reshuffle":
        return None
    seed = replicas.seed_of_replica(update.optimizer.seed, 63)
    return visiting_order(seed, update.variables.iterations.value, num_examples)


def _full_groups(
    update: ExampleUpdate,
    batch: _Batch,
    start: Mapping[int, Tensor],
    skip_all: Tensor,
    specs: Specs,
    how: How,
) -> RunResult:
    leaves, order, num_examples = batch
    tensors = [*leaves, *([] if order is None else [order])]
    # If Keras compiles the whole step, it does so for each batch size.
    if how.use_xla and not update.model.jit_compile:
        warn.watch_shapes(update.model, leaves)
        if not isinstance(num_examples, int) or not num_examples:
            # XLA handles a batch without examples badly: it is padded, too.
            size = padding.padded_size(update.model, num_examples)
            tensors = [examples.pad(tensor, size) for tensor in tensors]

    looks = skip_all is not None
    memory = WalkMemory.of(update, how.use_xla, tensors[0], specs)
    memory_leaves = tf.nest.flatten(memory)

    def full_groups(
        values: Tensor,
        is_compiled: bool,
        num_examples: Tensor,
        skip_all: Tensor,
        numbers: Tensor,
        *tensors: Tensor,
    ) -> WalkResult:
        split = len(memory_leaves)
        kept = tf.nest.pack_sequence_as(memory, list(tensors[:split]))
        tensors = tensors[split:]
        padded, orders = tensors[: len(leaves)], tensors[len(leaves) :]
        result = walk(
            update.given(numbers),
            kept,
            values,
            padded,
            orders[0] if orders else None,
            num_examples,
            specs,
            is_compiled,
            skip_all if looks else None,
        )
        _warn_of_statistics(update, result)
        return result

    flag = skip_all if looks else tf.constant(False)
    now = numbers.of(update.optimizer)
    arguments = [
        tf.convert_to_tensor(num_examples),
        flag,
        now,
        *memory_leaves,
        *tensors,
    ]
    return compiled.run(
        full_groups, update.carry, dict(start), arguments, how, update.model
    )


def _short_group(
    update: ExampleUpdate,
    batch: _Batch,
    rest: Tensor,
    start: Mapping[int, Tensor],
    full: RunResult,
) -> WalkedBatch:
    # The examples that are left over are one shorter group, with a shape of its own.
    positions = tf.range(batch.num_examples - rest, batch.num_examples)
    if batch.order is not None:
        positions = tf.gather(batch.order, positions)
    group = [examples.gather_examples(leaf, positions) for leaf in batch.leaves]
    before = Before(full.logs, full.skips, full.records)
    number = tf.convert_to_tensor(batch.num_examples // update.group_size)

    def one_group(
        values: list[Tensor],
        is_compiled: bool,
        positions: Tensor,
        number: Tensor,
        numbers: Tensor,
        *others: Tensor,
    ) -> WalkResult:
        del is_compiled  # a single update gains nothing from lowered forms
        known = tf.nest.pack_sequence_as(before, others[len(group) :])
        given = update.given(numbers)
        leaves = others[: len(group)]
        return walk_group(given, values, leaves, positions, number, known)

    now = numbers.of(update.optimizer)
    arguments = [positions, number, now, *group, *tf.nest.flatten(before)]
    earlier = {**start, **full.changed}
    done = compiled.run(
        one_group, update.carry, earlier, arguments, full.how, update.model
    )
    changed = {**full.changed, **done.changed}
    return _walked(done._replace(changed=changed))
