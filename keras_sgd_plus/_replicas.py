"""Several replicas of `tf.distribute`: each walks its shard, then all are averaged.

    w_r = walk(w, shard_r)                              # on each replica r, by itself
    w = w + sum_r(n_r * (w_r - w)) / sum_r(n_r)         # n_r: examples of the shard

This is local SGD (Stich, 2019, https://arxiv.org/abs/1805.09767; Zinkevich et al.,
2010, https://papers.nips.cc/paper/4006) with the batch as its period. Changes are
averaged, and not values: weights n_r / n do not add up to one exactly, and a variable
that no replica changes must stay as it is.

The first half answers questions about the strategy in which the caller runs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Model, Strategy, Structure, Tensor, Variable


def check() -> None:
    """Raises NotImplementedError under a strategy that a walk cannot run under."""
    if not tf.distribute.has_strategy():
        return
    strategy = tf.distribute.get_strategy()
    known = (
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )
    if not isinstance(strategy, known):
        raise NotImplementedError(
            "SGDPlus steps per example under tf.distribute.MirroredStrategy, "
            "MultiWorkerMirroredStrategy and OneDeviceStrategy. Received: "
            f"{type(strategy).__name__}. Use one of these, or examples_per_update=None "
            "for one update per batch."
        )


def check_replica() -> None:
    """Raises RuntimeError if several replicas train and the caller is none of them."""
    if num_replicas() > 1 and tf.distribute.in_cross_replica_context():
        raise RuntimeError(
            "train_step must be called by each replica. Received: a call inside "
            "strategy.scope() alone. Use strategy.run(lambda part: "
            "optimizer.train_step(model, part), args=(batch,))."
        )


def is_open() -> bool:
    """Whether a strategy is open; variables under it cannot be written inside XLA."""
    return tf.distribute.has_strategy()


def num_replicas() -> int:
    """The replicas that train together where the caller runs; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def num_replicas_of(model: Model) -> int:
    """The replicas that a model trains on."""
    return model.distribute_strategy.num_replicas_in_sync


def num_local_replicas() -> int:
    """The number of replicas in this process."""
    return num_replicas_per_worker(tf.distribute.get_strategy())


def num_replicas_per_worker(strategy: Strategy) -> int:
    """The number of replicas in each process of a strategy."""
    extended: Any = strategy.extended
    return len(extended.worker_devices)


def has_workers(strategy: Strategy) -> bool:
    """Whether a strategy trains with other processes."""
    return private_tensorflow.has_workers(strategy)


def worker(strategy: Strategy) -> int:
    """The number of this process among those of a strategy, from 0."""
    if not has_workers(strategy):
        return 0
    resolver: Any = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    is_worker = has_chief and resolver.task_type != "chief"
    return resolver.task_id + is_worker


def is_chief(strategy: Strategy) -> bool:
    """Whether this process is the one that writes files; true without workers."""
    return worker(strategy) == 0


def has_copies(variable: tf.Variable) -> bool:
    """Whether each replica of this process has a copy of a `tf.Variable`."""
    strategy = tf.distribute.get_strategy()
    copies = strategy.experimental_local_results(variable)
    return len(copies) == num_local_replicas()


def gathered(strategy: Strategy, value: int) -> list[int]:
    """The value that each worker has, in the order of their numbers.

    Args:
        strategy: all workers call this at the same place.
        value: of this one.
    """
    if not has_workers(strategy):
        return [value]
    per_replica = strategy.run(lambda: tf.constant([value], tf.int64))
    found = strategy.gather(per_replica, axis=0).numpy().tolist()
    return found[:: num_replicas_per_worker(strategy)]


def gathered_bytes(strategy: Strategy, value: bytes) -> list[bytes]:
    """As `gathered`, of bytes, of which each worker may have another number."""
    if not has_workers(strategy):
        return [value]
    sizes = gathered(strategy, len(value))
    row = np.zeros((1, -(-max(sizes) // 8)), np.int64)
    row.view(np.uint8)[0, : len(value)] = np.frombuffer(value, np.uint8)
    rows = strategy.gather(strategy.run(lambda: tf.constant(row)), axis=0).numpy()
    rows = rows[:: num_replicas_per_worker(strategy)]
    pairs = zip(rows, sizes, strict=True)
    return [row.tobytes()[:size] for row, size in pairs]


@contextlib.contextmanager
def lost_workers(strategy: Strategy) -> Iterator[None]:
    """Raises RuntimeError where TensorFlow says that a worker cannot be reached."""
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError)
    try:
        yield
    except lost as error:
        # TensorFlow has one class for many causes; its text alone names a lost worker.
        lines = [line for line in str(error).splitlines() if "aborted by" in line]
        if not lines or not has_workers(strategy):
            raise
        raise RuntimeError(
            "Every worker must take part in every batch. Received: a worker that is "
            f"gone ({lines[0].strip()}). Start all workers again, this one too; "
            "ExactResume takes the run up where it was saved."
        ) from error


def replica() -> int:
    """Which of all replicas the caller is, from 0."""
    context: Any = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group))


def local_replica() -> int:
    """Which of the replicas of this process the caller is, from 0."""
    return replica() % num_local_replicas()


def is_last_here() -> bool:
    """Whether the caller is the last replica of this process; true without any."""
    return num_replicas() == 1 or local_replica() == num_local_replicas() - 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Lets the code of a model believe that it runs on one device.

    Keras divides losses by the number of replicas, and synchronized statistics would
    talk to the others in the middle of a walk.
    """
    if num_replicas() == 1:
        yield
        return
    with private_tensorflow.without_strategy():
        yield


def seed_of_replica(seed: int, bits: int) -> int:
    """A seed of `bits` bits for this replica alone; that of replica 0 is `seed`."""
    if num_replicas() == 1 or not replica():
        return seed
    digest = hashlib.sha256(f"{seed} {replica()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


def seeds_of_replica(variables: Sequence[Variable]) -> dict[int, Tensor]:
    """Where the seed generators of this replica start, by position.

    A generator's state is a seed and a counter of draws; only the seed differs.

    Args:
        variables: those of the carry.
    """
    if num_replicas() == 1:
        return {}
    offset = [seed_of_replica(0, 31), 0]
    return {
        i: tf.bitwise.bitwise_xor(tf.convert_to_tensor(v.value), offset)
        for i, v in enumerate(variables)
        if keras_optimizer.is_seed(v)
    }


class ShardResult(NamedTuple):
    """The result of a replica's walk over its part of a batch."""

    variables: Sequence[Variable]  # of the carry
    start: dict[int, Tensor]  # where it did not start from the variables' own values
    changed: dict[int, Tensor]  # values by position
    num_examples: int | Tensor  # () int32


class Averaged(NamedTuple):
    """The result of averaging, the same on every replica."""

    changed: dict[int, Tensor]  # values by position, to be committed
    sizes: Tensor  # (replicas,) int64, the examples that each has walked
    notes: Tensor  # (replicas, columns) int64, one of each replica
    sums: list[Tensor]  # of the tensors that were handed over to be added up


def average(
    shard: ShardResult,
    note: Tensor,
    parts: Sequence[Tensor],
    smallest: Collection[Variable],
) -> Averaged:
    """Averages over the replicas, with one collective per dtype.

    Called by all replicas at the same place, outside any loop or branch.

    - Floats (weights, velocities, averages, statistics): by the examples walked.
    - Integers (`iterations`, draws of seed generators): the changes are added up.
    - Booleans: flipped where any replica has flipped it.
    - Metrics: each replica keeps its own; Keras adds them up when it reads them.

    Args:
        shard: what this replica has walked.
        note: (columns,) int64, for all replicas.
        parts: tensors to be added up, too.
        smallest: variables that get the smallest value that a replica has come to.
    """
    variables, changed = shard.variables, shard.changed
    before = {i: tf.convert_to_tensor(variables[i].value) for i in changed}
    ids = {id(variable) for variable in smallest}
    compared = [i for i in changed if id(variables[i]) in ids]
    shared = [i for i in changed if i not in compared and not _is_local(variables[i])]
    size = tf.cast(shard.num_examples, tf.int64)
    changes = [_change(changed[i], shard.start.get(i, before[i]), size) for i in shared]
    columns = [_row(tf.cast(changed[i], tf.float64)[None]) for i in compared]
    wide = [_wide(part) for part in parts]
    found = iter(_sum([_row(tf.concat([[size], note], 0)), *changes, *columns, *wide]))
    table = next(found)
    sizes, new = table[:, 0], dict(changed)
    for i in shared:
        new[i] = _changed(before[i], next(found), sizes)
    for i in compared:
        new[i] = _least(before[i], next(found)[:, 0], sizes)
    sums = [tf.cast(next(found), part.dtype) for part in parts]
    return Averaged(new, sizes, table[:, 1:], sums)


def unchanged_where(
    skip: Tensor, variables: Sequence[Variable], changed: dict[int, Tensor]
) -> dict[int, Tensor]:
    """The values from before the batch where `skip`, () bool, else the new ones."""
    return {
        i: tf.where(skip, tf.convert_to_tensor(variables[i].value), value)
        for i, value in changed.items()
    }


def metric_parts(model: Model, shard: ShardResult) -> list[Tensor]:
    """The share of this replica in each variable of the metrics."""
    return [
        _part(v, value) for v, value in _metric_values(model, shard) if _is_local(v)
    ]


def metrics(
    model: Model, shard: ShardResult, sums: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Results of the metrics from the sums of `metric_parts` over all replicas."""
    following = iter(sums)
    pairs = [
        (v, next(following) if _is_local(v) else value)
        for v, value in _metric_values(model, shard)
    ]
    with keras.StatelessScope(state_mapping=pairs):
        return model.get_metrics_result()


def log_parts(logs: Structure, shard: ShardResult) -> list[Tensor]:
    """The share of this replica in logs that are averaged by the examples walked."""
    flat = [_wide(tf.convert_to_tensor(leaf)) for leaf in tf.nest.flatten(logs)]
    return [leaf * tf.cast(shard.num_examples, leaf.dtype) for leaf in flat]


def mean_logs(logs: Structure, averaged: Averaged) -> Structure:
    """The averages from the sums of `log_parts`."""
    means = [
        tf.cast(tf.math.divide_no_nan(total, _total(averaged.sizes, total)), leaf.dtype)
        for total, leaf in zip(averaged.sums, tf.nest.flatten(logs), strict=True)
    ]
    return tf.nest.pack_sequence_as(logs, means)


def commit(variables: Sequence[Variable], values: dict[int, Tensor]) -> None:
    """Writes this replica's copies of the variables, by position.

    Keras's variables ask for several ways to bring replicas together; these values are
    together already.
    """
    current = tf.distribute.get_strategy()
    for i, value in values.items():
        native = keras_optimizer.native(variables[i])
        copies = current.experimental_local_results(native)
        copies[replica() % len(copies)].assign(value)


def _is_local(variable: Variable) -> bool:
    # Keras's metrics: each replica has a value of its own.
    return variable.synchronization == "on_read"


def _metric_values(model: Model, shard: ShardResult) -> list[tuple[Variable, Tensor]]:
    places = {id(v): i for i, v in enumerate(shard.variables)}
    found = []
    for variable in model.metrics_variables:
        known = shard.changed.get(places[id(variable)])
        value = tf.convert_to_tensor(variable.value) if known is None else known
        found.append((variable, value))
    return found


def _part(variable: Variable, value: Tensor) -> Tensor:
    # As the `aggregation` of a metric's variable says.
    if variable.aggregation == "mean":
        return value / tf.cast(num_replicas(), value.dtype)
    if variable.aggregation == "sum" or not replica():
        return value
    return tf.zeros_like(value)


def _row(values: Tensor) -> Tensor:
    # To be added up to a table with one row per replica.
    others = num_replicas() - 1 - replica()
    return tf.pad(values[None], [[replica(), others], [0, 0]])


def _wide(value: Tensor) -> Tensor:
    # As a type that adds up well.
    if value.dtype in (tf.float32, tf.float64):
        return value
    return tf.cast(value, tf.float32 if value.dtype.is_floating else tf.int64)


def _total(sizes: Tensor, like: Tensor) -> Tensor:
    return tf.cast(tf.reduce_sum(sizes), like.dtype)


def _change(new: Tensor, old: Tensor, size: Tensor) -> Tensor:
    if new.dtype == tf.bool:
        return tf.cast(new != old, tf.int64)
    if not new.dtype.is_floating:
        return tf.cast(new - old, tf.int64)
    change = _wide(new) - _wide(old)
    return change * tf.cast(size, change.dtype)


def _changed(old: Tensor, change: Tensor, sizes: Tensor) -> Tensor:
    if old.dtype == tf.bool:
        return tf.math.logical_xor(old, change > 0)
    if not old.dtype.is_floating:
        return old + tf.cast(change, old.dtype)
    mean = tf.math.divide_no_nan(change, _total(sizes, change))
    return tf.cast(_wide(old) + mean, old.dtype)


def _least(old: Tensor, column: Tensor, sizes: Tensor) -> Tensor:
    # The smallest value of the replicas that have walked anything.
    column = tf.where(sizes > 0, column, column.dtype.max)
    least = tf.cast(tf.reduce_min(column), old.dtype)
    return tf.where(tf.reduce_any(sizes > 0), least, old)


def _sum(values: Sequence[Tensor]) -> list[Tensor]:
    context: Any = tf.distribute.get_replica_context()
    by_dtype: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        by_dtype.setdefault(value.dtype, []).append(i)
    found = list(values)
    for positions in by_dtype.values():
        sums = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [values[i] for i in positions]
        )
        for i, total in zip(positions, sums, strict=True):
            found[i] = total
    return found
