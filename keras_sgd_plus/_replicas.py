"""Several replicas of `tf.distribute`: each walks its shard, then all are averaged.

    w_r = walk(w, shard_r)                              # on each replica r, by itself
    w = w + sum_r(n_r * (w_r - w)) / sum_r(n_r)         # n_r: examples of the shard

This is local SGD (Stich, 2019, https://arxiv.org/abs/1805.09767; Zinkevich et al.,
2010, https://papers.nips.cc/paper/4006) with the batch as its period. Changes are
averaged, and not values: weights n_r / n do not add up to one exactly, and a variable
that no replica changes must stay as it is.

What more than one replica adds to a step is asked of `current()`. Before it stand
questions about a strategy and its workers.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import (
    Model,
    Optimizer,
    Strategy,
    Structure,
    Tensor,
    Variable,
)


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


def is_open() -> bool:
    """Whether a strategy is open; variables under it cannot be written inside XLA."""
    return tf.distribute.has_strategy()


def num_replicas_per_worker(strategy: Strategy) -> int:
    """The number of replicas in each process of a strategy."""
    extended: Any = strategy.extended
    return len(extended.worker_devices)


def check_train_on_batch(model: Model) -> None:
    """Raises NotImplementedError where several replicas would get the same batch."""
    num_replicas = model.distribute_strategy.num_replicas_in_sync
    if num_replicas > 1:
        raise NotImplementedError(
            "train_on_batch must be called with one replica: Keras hands the whole "
            f"batch to each of several. Received: {num_replicas} replicas. Use fit, or "
            "strategy.run with optimizer.train_step."
        )


def needed_methods(strategy: Strategy) -> list[str]:
    """The methods of Keras that training under a strategy needs wrapped."""
    several = strategy.num_replicas_in_sync > 1
    names = ["_maybe_symbolic_build"] if several else []
    return names + (["_make_function"] if has_workers(strategy) else [])


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


class Shard(NamedTuple):
    """A replica's part of a batch after its walk, whose variables are not written."""

    variables: Sequence[Variable]  # of the carry
    start: dict[int, Tensor]  # where it did not start from the variables' own values
    changed: dict[int, Tensor]  # values by position
    num_examples: int | Tensor  # () int32
    logs: Structure | None  # None where the metrics give them
    # Gives (columns,) int64, for all replicas; the first is the count of bad groups.
    note: Callable[[], Tensor] | None
    ends_training: bool  # whether a bad group of any replica undoes the batch
    smallest: Collection[Variable]  # that get the smallest value of the replicas
    commit: Callable[[dict[int, Tensor]], None]  # writes what one replica has changed


class Settled(NamedTuple):
    """A batch whose variables are written."""

    logs: Structure
    size: int | Tensor  # (), examples of all replicas
    before: int | Tensor  # (), those of the replicas before this one
    notes: Tensor | None  # (replicas, columns), the notes of all; None of one replica


class Replicas:
    """The replicas that train together, as one sees them. This one is alone."""

    number = 0  # of this replica among all
    number_here = 0  # among those of this process
    is_last_here = True
    meet_in_functions = True  # whether a step may be a function of its own
    add_up_sums = True  # whether a sum of floats in the carry stays one

    def check(self, model: Model, optimizer: Optimizer) -> None:
        """Raises where a step of this model cannot be made."""

    def seed(self, seed: int, bits: int) -> int:
        """A seed of `bits` bits for this replica alone; that of replica 0 is `seed`."""
        return seed

    def starts(self, variables: Sequence[Variable]) -> dict[int, Tensor]:
        """Where this replica does not start from the variables of a carry."""
        return {}

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Lets the code of a model believe that it runs on one device."""
        return contextlib.nullcontext()

    def settle(self, model: Model, shard: Shard) -> Settled:
        """Writes the variables of a batch; called by all replicas at the same place."""
        shard.commit(shard.changed)
        logs = model.get_metrics_result() if shard.logs is None else shard.logs
        return Settled(logs, shard.num_examples, 0, None)


def current() -> Replicas:
    """The replicas that train together where the caller runs."""
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return _Several(num_replicas) if num_replicas > 1 else _ALONE


_ALONE = Replicas()


class _Several(Replicas):
    meet_in_functions = False
    add_up_sums = False

    def __init__(self, count: int) -> None:
        self._count = count
        self._here = num_replicas_per_worker(tf.distribute.get_strategy())
        if tf.distribute.in_cross_replica_context():
            return  # the caller is none of them
        context: Any = tf.distribute.get_replica_context()
        self.number = int(tf.get_static_value(context.replica_id_in_sync_group))
        self.number_here = self.number % self._here
        self.is_last_here = self.number_here == self._here - 1

    def check(self, model: Model, optimizer: Optimizer) -> None:
        if tf.distribute.in_cross_replica_context():
            raise RuntimeError(
                "train_step must be called by each replica. Received: a call inside "
                "strategy.scope() alone. Use strategy.run(lambda part: "
                "optimizer.train_step(model, part), args=(batch,))."
            )
        steps = optimizer.gradient_accumulation_steps
        if steps:
            raise NotImplementedError(
                "gradient_accumulation_steps must be None with several replicas, whose "
                f"average would cut its windows. Received: {self._count} replicas and "
                f"gradient_accumulation_steps={steps}. Use examples_per_update="
                f"{steps}, which averages the gradients of as many examples inside a "
                "batch."
            )
        variables = [*model.variables, *model.metrics_variables, *optimizer.variables]
        single = [v.path for v in variables if not self._has_copies(v)]
        if single:
            raise ValueError(
                "Model, compile() and metrics must be made inside strategy.scope(). "
                f"Received: one {single[0]!r} for all {self._count} replicas. Make "
                "them inside it."
            )
        calls, received = model.steps_per_execution, []
        received += ["jit_compile=True"] if model.jit_compile else []
        received += [f"steps_per_execution={calls}"] if calls > 1 else []
        if received:  # Keras fails with these whatever the optimizer
            raise NotImplementedError(
                "The steps of several replicas must be neither one XLA computation "
                f"nor one loop. Received: {self._count} replicas and compile("
                f"{', '.join(received)}). Leave that out: SGDPlus compiles the loop "
                "over examples itself."
            )

    def seed(self, seed: int, bits: int) -> int:
        number = self.number
        if not number:
            return seed
        digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> (64 - bits)

    def starts(self, variables: Sequence[Variable]) -> dict[int, Tensor]:
        # The state of a seed generator is a seed and a counter of draws; only the seed
        # differs.
        offset = [self.seed(0, 31), 0]
        return {
            i: tf.bitwise.bitwise_xor(tf.convert_to_tensor(v.value), offset)
            for i, v in enumerate(variables)
            if keras_optimizer.is_seed(v)
        }

    def alone(self) -> contextlib.AbstractContextManager[None]:
        # Keras divides losses by the number of replicas, and synchronized statistics
        # would talk to the others in the middle of a walk.
        return private_tensorflow.without_strategy()

    def settle(self, model: Model, shard: Shard) -> Settled:
        if tf.executing_eagerly():  # a replica without examples has changed nothing
            whole = {
                i: tf.convert_to_tensor(v.value) for i, v in enumerate(shard.variables)
            }
            changed = {**whole, **shard.start, **shard.changed}
            shard = shard._replace(changed=changed)
        if shard.logs is None:
            parts = self._metric_parts(model, shard)
        else:
            parts = _log_parts(shard)
        averaged = self._average(shard, parts)
        new, notes = averaged.changed, averaged.notes
        if shard.ends_training:
            has_ended = tf.reduce_any(notes[:, 0] > 0)
            new = _unchanged_where(has_ended, shard.variables, new)
        self._commit(shard.variables, new)
        if shard.logs is None:
            logs = _metrics(model, shard, averaged.sums)
        else:
            logs = _mean_logs(shard.logs, averaged)
        sizes = averaged.sizes
        before = tf.reduce_sum(sizes[: self.number])
        return Settled(logs, tf.reduce_sum(sizes), before, notes)

    def _has_copies(self, variable: Variable) -> bool:
        # Whether each replica of this process has a copy.
        native = keras_optimizer.native(variable)
        strategy = tf.distribute.get_strategy()
        return len(strategy.experimental_local_results(native)) == self._here

    def _average(self, shard: Shard, parts: Sequence[Tensor]) -> _Averaged:
        # With one collective per dtype, outside any loop or branch.
        # - Floats (weights, velocities, averages, statistics): by the examples walked.
        # - Integers (`iterations`, draws of seed generators): changes are added up.
        # - Booleans: flipped where any replica has flipped it.
        # - Metrics: each replica keeps its own; Keras adds them up when it reads them.
        # `parts` are tensors to be added up, too.
        variables, changed = shard.variables, shard.changed
        before = {i: tf.convert_to_tensor(variables[i].value) for i in changed}
        ids = {id(variable) for variable in shard.smallest}
        compared = [i for i in changed if id(variables[i]) in ids]
        shared = [
            i for i in changed if i not in compared and not _is_local(variables[i])
        ]
        size = tf.cast(shard.num_examples, tf.int64)
        note = tf.zeros((0,), tf.int64) if shard.note is None else shard.note()
        first = self._row(tf.concat([[size], note], 0))
        changes = [
            _change(changed[i], shard.start.get(i, before[i]), size) for i in shared
        ]
        columns = [self._row(tf.cast(changed[i], tf.float64)[None]) for i in compared]
        found = iter(_sum([first, *changes, *columns, *map(_wide, parts)]))
        table = next(found)
        sizes, new = table[:, 0], dict(changed)
        for i in shared:
            new[i] = _changed(before[i], next(found), sizes)
        for i in compared:
            new[i] = _least(before[i], next(found)[:, 0], sizes)
        sums = [tf.cast(next(found), part.dtype) for part in parts]
        return _Averaged(new, sizes, table[:, 1:], sums)

    def _row(self, values: Tensor) -> Tensor:
        # To be added up to a table with one row per replica.
        others = self._count - 1 - self.number
        return tf.pad(values[None], [[self.number, others], [0, 0]])

    def _metric_parts(self, model: Model, shard: Shard) -> list[Tensor]:
        # The share of this replica in each variable of the metrics.
        return [
            self._part(v, value)
            for v, value in _metric_values(model, shard)
            if _is_local(v)
        ]

    def _part(self, variable: Variable, value: Tensor) -> Tensor:
        # As the `aggregation` of a metric's variable says.
        if variable.aggregation == "mean":
            return value / tf.cast(self._count, value.dtype)
        if variable.aggregation == "sum" or not self.number:
            return value
        return tf.zeros_like(value)

    def _commit(self, variables: Sequence[Variable], values: dict[int, Tensor]) -> None:
        # Writes this replica's copies. Keras's variables ask for several ways to bring
        # replicas together; these values are together already.
        strategy = tf.distribute.get_strategy()
        for i, value in values.items():
            native = keras_optimizer.native(variables[i])
            copies = strategy.experimental_local_results(native)
            copies[self.number % len(copies)].assign(value)


class _Averaged(NamedTuple):
    # The result of averaging, the same on every replica.
    changed: dict[int, Tensor]  # values by position, to be committed
    sizes: Tensor  # (replicas,) int64, the examples that each has walked
    notes: Tensor  # (replicas, columns) int64, one of each replica
    sums: list[Tensor]  # of the tensors that were handed over to be added up


def _unchanged_where(
    skip: Tensor, variables: Sequence[Variable], changed: dict[int, Tensor]
) -> dict[int, Tensor]:
    # The values from before the batch where `skip`, () bool, else the new ones.
    return {
        i: tf.where(skip, tf.convert_to_tensor(variables[i].value), value)
        for i, value in changed.items()
    }


def _metrics(model: Model, shard: Shard, sums: Sequence[Tensor]) -> dict[str, Tensor]:
    # Results of the metrics from the sums of `_metric_parts` over all replicas.
    following = iter(sums)
    pairs = [
        (v, next(following) if _is_local(v) else value)
        for v, value in _metric_values(model, shard)
    ]
    with keras.StatelessScope(state_mapping=pairs):
        return model.get_metrics_result()


def _log_parts(shard: Shard) -> list[Tensor]:
    # The share of this replica in logs that are averaged by the examples walked.
    flat = [_wide(tf.convert_to_tensor(leaf)) for leaf in tf.nest.flatten(shard.logs)]
    return [leaf * tf.cast(shard.num_examples, leaf.dtype) for leaf in flat]


def _mean_logs(logs: Structure, averaged: _Averaged) -> Structure:
    # The averages from the sums of `_log_parts`.
    means = [
        tf.cast(tf.math.divide_no_nan(total, _total(averaged.sizes, total)), leaf.dtype)
        for total, leaf in zip(averaged.sums, tf.nest.flatten(logs), strict=True)
    ]
    return tf.nest.pack_sequence_as(logs, means)


def _is_local(variable: Variable) -> bool:
    # Keras's metrics: each replica has a value of its own.
    return variable.synchronization == "on_read"


def _metric_values(model: Model, shard: Shard) -> list[tuple[Variable, Tensor]]:
    places = {id(v): i for i, v in enumerate(shard.variables)}
    found = []
    for variable in model.metrics_variables:
        known = shard.changed.get(places[id(variable)])
        value = tf.convert_to_tensor(variable.value) if known is None else known
        found.append((variable, value))
    return found


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
