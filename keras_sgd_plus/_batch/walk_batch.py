"""Walks one batch in its order: all full groups in a loop, then the rest.

XLA compiles the loop anew for each number of examples. So a batch is padded to a power
of two, its *bucket*: the smallest that holds it. Where twice that is compiled already,
and the bucket is not, it is taken instead: a data set of 1,536 makes batches of 1,024
and 512, and compiles once. No batch becomes more than twice its bucket, since padding
is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._advice import notices
from keras_sgd_plus._batch import checks, compiled
from keras_sgd_plus._batch.compiled import How
from keras_sgd_plus._forms import tracing
from keras_sgd_plus._loop import calls_ahead, examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.walk import (
    Specs,
    Walked,
    WalkMemory,
    WalkTrace,
    first_specs,
    walk,
    walk_group,
)
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Model, PerObject, Tensor
from keras_sgd_plus._rule import rule

_PHILOX = 1  # in raw operations


def visiting_order(
    seed: int, counter: Tensor | tf.Variable, num_examples: int | Tensor
) -> Tensor:
    """A uniform permutation of a batch: a pure function of `seed` and `counter`.

    There is no generator state, and the permutation is the same with and without XLA.

    Args:
        seed: that of the optimizer.
        counter: () int64, the raw update counter at the batch's start.
        num_examples: () int32, the examples of the batch.

    Returns:
        (num_examples,) int32: the positions to visit.
    """
    counter = tf.cast(counter, tf.int64)
    key = tf.stack([tf.constant(seed, tf.int64), counter])
    if xla.is_tracing():
        return _shuffle(key, num_examples, counter < 0)
    # `tf.random.experimental.stateless_shuffle(places, key, alg="philox")`, which takes
    # some forty operations to make key and counter, each of which is traced.
    made = tf.raw_ops.StatelessRandomGetKeyCounter(seed=key)
    return tf.raw_ops.StatelessShuffle(
        value=tf.range(num_examples, dtype=tf.int32),
        key=made.key,
        counter=made.counter,
        alg=_PHILOX,
    )


def _shuffle(key: Tensor, num_examples: Any, never: Tensor) -> Tensor:
    # The shuffle of Fisher and Yates (Durstenfeld, 1964,
    # https://doi.org/10.1145/364520.364540), which is that of `stateless_shuffle`. XLA
    # has no kernel for that.
    every_bit: Any = None
    bits = tf.random.stateless_uniform(
        (num_examples,), key, every_bit, every_bit, tf.uint32, alg="philox"
    )
    places = tf.range(num_examples, dtype=tf.int32)
    offsets = tf.math.floormod(bits, tf.cast(num_examples - places, tf.uint32))
    partners = places + tf.cast(offsets, tf.int32)
    order = tf.TensorArray(
        tf.int32, size=num_examples, element_shape=(), clear_after_read=False
    ).unstack(places)

    def body_fn(i: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        j = tf.gather(partners, i)
        at_i, at_j = order.read(i), order.read(j)
        # Both are read before one is written, and XLA is told so by a dependency that
        # changes nothing: otherwise it copies the whole order for every swap.
        order = order.write(i, tf.where(never, at_i, at_j))
        return i + 1, order.write(j, at_i)

    return tf.while_loop(
        lambda i, _: i < num_examples,
        body_fn,
        (tf.constant(0), order),
        parallel_iterations=1,
    )[1].stack()


_SIZES = [2**i for i in range(3, 31)]
# Per model, the sum of the sizes so far, () int64: each is a bit of its own.
_used: PerObject[Any] = PerObject(lambda: private_tensorflow.variable(()))


def padded_size(model: Model, num_examples: int | Tensor) -> int | Tensor:
    """The size for a batch of `num_examples`, () int32; notes that it is used."""
    sizes = tf.constant(_SIZES, tf.int32)
    bucket = tf.gather(sizes, tf.searchsorted(sizes, [num_examples])[0])
    if replicas.is_open():  # replicas would write one variable at once
        return bucket
    used = _used[model]
    own = tf.cast(bucket, tf.int64)
    before = used.read_value()
    # Of the two bits, only the one of twice the bucket.
    takes_twice = tf.equal(tf.bitwise.bitwise_and(before, 3 * own), 2 * own)
    size = tf.where(takes_twice, 2 * own, own)
    used.assign(tf.bitwise.bitwise_or(before, size), read_value=False)
    return tf.cast(size, tf.int32)


# Per model, (3,) int64: the first group to be visited; the one behind the last, 0 for
# all; the number of updates before the batch, from 1 on, 0 for that of now.
_part: PerObject[Any] = PerObject(lambda: private_tensorflow.variable((3,)))


@contextlib.contextmanager
def part_of_batches(model: Model, first: int, end: int, before: int) -> Iterator[None]:
    """Batches that are trained on while this is open are visited in part.

    Parts that follow each other visit what the whole batch would, in the same order.

    Args:
        model: in training.
        first: number of the first group to be visited.
        end: number of the group behind the last; 0: batches are visited whole.
        before: updates of the optimizer before the batch.
    """
    _part[model].assign([first, end, before + 1 if end else 0])
    try:
        yield
    finally:
        _part[model].assign([0, 0, 0])


class _Batch(NamedTuple):
    # A batch and the order of its visits.
    leaves: Sequence[Any]
    order: Tensor | None  # (num_examples,) int32, or None
    num_examples: int | Tensor  # an int or () int32
    part: Tensor  # (3,) int64, of `part_of_batches`


def _part_of(model: Model) -> Tensor:
    if replicas.is_open():  # they would share what none of them may write
        return tf.zeros((3,), tf.int64)
    return _part[model].read_value()


def _groups(part: Tensor, num_groups: Tensor) -> tuple[Tensor, Tensor]:
    # () int32 each: the first one that is visited, and the one behind the last.
    first, end, _ = tf.unstack(tf.cast(part, tf.int32))
    return first, tf.where(end > 0, tf.minimum(end, num_groups), num_groups)


def walk_batch(
    context: Context,
    num_examples: Any,
    start: Mapping[int, Tensor],
    skip_all: Tensor | None,
) -> tuple[Walked, Tensor | None]:
    """Walks the batch of an update; what `changed` has is to be committed.

    Args:
        context: the update, which has the batch.
        num_examples: an int or () int32.
        start: values by position in the carry where a replica does not start from the
            variables.
        skip_all: () bool, whether an earlier batch ended training; None under
            nonfinite="propagate".

    Returns:
        The result; and (num_examples,) int32, the positions that were visited, or None
        for the order in which they were handed over.
    """
    leaves = examples.flat(context.batch)
    use_xla = compiled.wants_xla(context.optimizer.jit_compile, context.model)
    if use_xla:
        context, use_xla = compiled.run_ahead_if_refused(context, leaves)
    part = _part_of(context.model)
    order = _order(context, num_examples, part)
    size = context.group_size
    if context.ahead is not None:
        groups = _groups(part, tf.convert_to_tensor(num_examples // size))
        made = calls_ahead.run(
            context.ahead,
            context.batch,
            leaves,
            order,
            num_examples,
            groups,
            size,
            start,
        )
        leaves = [*context.ahead.kept(leaves), *made]
    specs = first_specs(context, leaves)
    _warn(context, use_xla, num_examples)
    batch = _Batch(leaves, order, num_examples, part)
    rest = num_examples % size
    is_whole = size == 1 or (isinstance(rest, int) and not rest)
    how = How.of(use_xla, context.optimizer.jit_compile, is_last=is_whole)
    full, how = _full_groups(context, batch, start, skip_all, specs, how)
    walked = full

    def with_rest() -> Walked:
        return _short_group(context, batch, rest, start, full, how)

    if isinstance(rest, int) and rest:
        walked = with_rest()
    elif not is_whole:
        walked = tf.cond(rest > 0, with_rest, lambda: full)
    return walked, batch.order


def _warn(context: Context, use_xla: bool, num_examples: int | Tensor) -> None:
    model, sample_weight = context.model, context.batch[2]
    for topic, text in checks.doubts_of_losses(
        model, sample_weight, context.group_size
    ):
        notices.once(model, topic, text)
    if context.group_size > 1 and not model.jit_compile:
        notices.watch_groups(model, context.group_size, num_examples)
    text = context.tables.warning()
    if text is not None and use_xla and tracing.is_on():
        notices.once(model, "tables", text)


def _warn_of_statistics(context: Context, result: Walked) -> None:
    # What a layer does in training shows only when the walk has been traced.
    if context.group_size > 1:
        return
    found = checks.doubts_of_normalising(context.model, context.carry, result.changed)
    for topic, text in found:
        notices.once(context.model, topic, text)


def _order(context: Context, num_examples: int | Tensor, part: Tensor) -> Tensor | None:
    if context.optimizer.order != "reshuffle":
        return None
    seed = context.replicas.seed(context.optimizer.seed, 63)
    now = tf.cast(context.variables.iterations.value, tf.int64)
    now = tf.where(part[2] > 0, part[2] - 1, now)
    return visiting_order(seed, now, num_examples)


def _full_groups(
    context: Context,
    batch: _Batch,
    start: Mapping[int, Tensor],
    skip_all: Tensor | None,
    specs: Specs,
    how: How,
) -> tuple[Walked, How]:
    leaves, order, num_examples, part = batch
    tensors = [*leaves, *([] if order is None else [order])]
    # If Keras compiles the whole step, it does so for each batch size.
    if how.use_xla and not context.model.jit_compile:
        notices.watch_shapes(context.model, leaves)
        if not isinstance(num_examples, int) or not num_examples:
            # XLA handles a batch without examples badly: it is padded, too.
            size = padded_size(context.model, num_examples)
            tensors = [examples.pad(tensor, size) for tensor in tensors]

    looks = skip_all is not None
    memory = WalkMemory.of(context, how.use_xla, tensors[0], specs)
    memory_leaves = tf.nest.flatten(memory)

    def full_groups(
        values: Values,
        is_compiled: bool,
        num_examples: Tensor,
        part: Tensor,
        skip_all: Tensor,
        numbers: Tensor,
        *tensors: Tensor,
    ) -> WalkTrace:
        split = len(memory_leaves)
        kept = tf.nest.pack_sequence_as(memory, list(tensors[:split]))
        tensors = tensors[split:]
        padded, orders = tensors[: len(leaves)], tensors[len(leaves) :]
        trace = walk(
            context.given(numbers),
            kept,
            values,
            padded,
            orders[0] if orders else None,
            _groups(part, num_examples // context.group_size),
            specs,
            is_compiled,
            skip_all if looks else None,
        )
        _warn_of_statistics(context, trace.walked)
        return trace

    flag = skip_all if looks else tf.constant(False)
    now = rule.numbers_of(context.optimizer)
    count = tf.convert_to_tensor(num_examples)
    arguments = [count, part, flag, now, *memory_leaves, *tensors]
    return compiled.run(full_groups, context, dict(start), arguments, how)


def _short_group(
    context: Context,
    batch: _Batch,
    rest: int | Tensor,
    start: Mapping[int, Tensor],
    full: Walked,
    how: How,
) -> Walked:
    # The examples that are left over are one shorter group, with a shape of its own.
    positions = tf.range(batch.num_examples - rest, batch.num_examples)
    if batch.order is not None:
        positions = tf.gather(batch.order, positions)
    group = [examples.gather_examples(leaf, positions) for leaf in batch.leaves]
    before = full.logs, full.skips, full.records
    number = tf.convert_to_tensor(batch.num_examples // context.group_size)

    def one_group(
        values: list[Tensor],
        is_compiled: bool,
        positions: Tensor,
        number: Tensor,
        numbers: Tensor,
        *others: Tensor,
    ) -> WalkTrace:
        # A single update gains nothing from lowered forms.
        known = tf.nest.pack_sequence_as(before, others[len(group) :])
        given = context.given(numbers)
        leaves = others[: len(group)]
        return walk_group(given, values, leaves, positions, number, known)

    now = rule.numbers_of(context.optimizer)
    arguments = [positions, number, now, *group, *tf.nest.flatten(before)]
    earlier = {**start, **full.changed}
    done, _ = compiled.run(one_group, context, earlier, arguments, how)
    return done._replace(changed={**full.changed, **done.changed})
