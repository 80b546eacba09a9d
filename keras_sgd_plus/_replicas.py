"""Several replicas of `tf.distribute`: each walks its shard, then all are averaged.

    w_r = walk(w, shard_r)                              # on each replica r, by itself
    w = w + sum_r(n_r * (w_r - w)) / sum_r(n_r)         # n_r: examples of the shard

This is local SGD (Stich, 2019, https://arxiv.org/abs/1805.09767; Zinkevich et al.,
2010, https://papers.nips.cc/paper/4006) with the batch as its period. The changes are
averaged, not the values: weights n_r / n do not add up to one exactly, and what no
replica changes must stay as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus import _keras, _strategy
from keras_sgd_plus._state import Carry


def fold(seed: int, bits: int) -> int:
    """A seed of `bits` bits for this replica alone; that of replica 0 is `seed`."""
    if _strategy.num_replicas() == 1 or not _strategy.replica():
        return seed
    digest = hashlib.sha256(f"{seed} {_strategy.replica()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


def folded_seeds(carry: Carry) -> dict[int, Any]:
    """Where the seed generators of this replica start, by position in the carry.

    A generator's state is a seed and a counter of draws; only the seed is folded.
    """
    if _strategy.num_replicas() == 1:
        return {}
    offset = [fold(0, 31), 0]
    return {
        i: tf.bitwise.bitwise_xor(tf.convert_to_tensor(v.value), offset)
        for i, v in enumerate(carry.variables)
        if _keras.is_seed(v)
    }


class Walked(NamedTuple):
    """What a replica brings back from its shard."""

    carry: Carry
    start: dict[int, Any]  # where it did not start from the variables' own values
    changed: dict[int, Any]  # values by position
    num_examples: Any  # () int32


class Met(NamedTuple):
    """What every replica knows after they have met."""

    changed: dict[int, Any]  # values by position, to be committed
    sizes: Any  # (replicas,) int64, the examples that each has walked
    notes: Any  # (replicas, columns) int64
    sums: list[Any]  # what was handed over to be added up


def meet(
    walked: Walked, note: Any, parts: Sequence[Any], smallest: Collection[Any]
) -> Met:
    """Averages over the replicas, with one collective per dtype.

    Called by all replicas at the same place, outside any loop or branch.

    - Floats (weights, velocities, averages, statistics): by the examples walked.
    - Integers (`iterations`, draws of seed generators): the changes are added up.
    - Booleans: flipped where any replica has flipped it.
    - Metrics: each replica keeps its own; Keras adds them up when it reads them.

    Args:
        walked: what this replica has walked.
        note: (columns,) int64, what the others are to know of it.
        parts: tensors to be added up, too.
        smallest: variables that get the smallest value that a replica has come to.
    """
    carry, changed = walked.carry, walked.changed
    before = {i: tf.convert_to_tensor(carry.variables[i].value) for i in changed}
    ids = {id(variable) for variable in smallest}
    compared = [i for i in changed if id(carry.variables[i]) in ids]
    shared = [i for i in changed if i not in compared and not _is_local(carry, i)]
    size = tf.cast(walked.num_examples, tf.int64)
    changes = [
        _change(changed[i], walked.start.get(i, before[i]), size) for i in shared
    ]
    columns = [_row(tf.cast(changed[i], tf.float64)[None]) for i in compared]
    wide = [_wide(part) for part in parts]
    found = iter(_sum([_row(tf.concat([[size], note], 0)), *changes, *columns, *wide]))
    table = next(found)
    sizes, new = table[:, 0], dict(changed)
    for i in shared:
        new[i] = _changed(before[i], next(found), sizes)
    for i in compared:
        column = next(found)[:, 0]
        column = tf.where(sizes > 0, column, column.dtype.max)
        least = tf.cast(tf.reduce_min(column), before[i].dtype)
        new[i] = tf.where(tf.reduce_any(sizes > 0), least, before[i])
    sums = [tf.cast(next(found), part.dtype) for part in parts]
    return Met(new, sizes, table[:, 1:], sums)


def held(carry: Carry, changed: dict[int, Any], is_held: Any) -> dict[int, Any]:
    """The values from before the batch where `is_held`, () bool, else the new ones."""
    return {
        i: tf.where(is_held, tf.convert_to_tensor(carry.variables[i].value), value)
        for i, value in changed.items()
    }


def metric_parts(model: Any, walked: Walked) -> list[Any]:
    """What this replica adds to each variable of the metrics."""
    return [_part(v, value) for v, value in _metric_values(model, walked) if _is_on(v)]


def metrics(model: Any, walked: Walked, sums: Sequence[Any]) -> Any:
    """Results of the metrics from the sums of `metric_parts` over all replicas."""
    following = iter(sums)
    pairs = [
        (v, next(following) if _is_on(v) else value)
        for v, value in _metric_values(model, walked)
    ]
    with keras.StatelessScope(state_mapping=pairs):
        return model.get_metrics_result()


def log_parts(logs: Any, walked: Walked) -> list[Any]:
    """What this replica adds to logs that are averaged by the examples walked."""
    flat = [_wide(tf.convert_to_tensor(leaf)) for leaf in tf.nest.flatten(logs)]
    return [leaf * tf.cast(walked.num_examples, leaf.dtype) for leaf in flat]


def mean_logs(logs: Any, met: Met) -> Any:
    """The averages from the sums of `log_parts`."""
    means = [
        tf.cast(tf.math.divide_no_nan(total, _total(met.sizes, total)), leaf.dtype)
        for total, leaf in zip(met.sums, tf.nest.flatten(logs), strict=True)
    ]
    return tf.nest.pack_sequence_as(logs, means)


def commit(carry: Carry, values: dict[int, Any]) -> None:
    """Writes this replica's copies of the variables, by position.

    Keras's variables ask for several ways to bring replicas together; these values are
    together already.
    """
    strategy = tf.distribute.get_strategy()
    for i, value in values.items():
        copies = strategy.experimental_local_results(_keras.native(carry.variables[i]))
        copies[_strategy.replica() % len(copies)].assign(value)


def _is_local(carry: Carry, position: int) -> bool:
    return _is_on(carry.variables[position])


def _is_on(variable: Any) -> bool:
    # Keras's metrics: each replica has a value of its own.
    return variable.synchronization == "on_read"


def _metric_values(model: Any, walked: Walked) -> list[tuple[Any, Any]]:
    found = []
    for variable in model.metrics_variables:
        i = walked.carry.index(variable)
        known = walked.changed.get(i)
        value = tf.convert_to_tensor(variable.value) if known is None else known
        found.append((variable, value))
    return found


def _part(variable: Any, value: Any) -> Any:
    # As the `aggregation` of a metric's variable says.
    if variable.aggregation == "mean":
        return value / tf.cast(_strategy.num_replicas(), value.dtype)
    if variable.aggregation == "sum" or not _strategy.replica():
        return value
    return tf.zeros_like(value)


def _row(values: Any) -> Any:
    # To be added up to a table with one row per replica.
    others = _strategy.num_replicas() - 1 - _strategy.replica()
    return tf.pad(values[None], [[_strategy.replica(), others], [0, 0]])


def _wide(value: Any) -> Any:
    # As a type that adds up well.
    if value.dtype in (tf.float32, tf.float64):
        return value
    return tf.cast(value, tf.float32 if value.dtype.is_floating else tf.int64)


def _total(sizes: Any, like: Any) -> Any:
    return tf.cast(tf.reduce_sum(sizes), like.dtype)


def _change(new: Any, old: Any, size: Any) -> Any:
    if new.dtype == tf.bool:
        return tf.cast(new != old, tf.int64)
    if not new.dtype.is_floating:
        return tf.cast(new - old, tf.int64)
    change = _wide(new) - _wide(old)
    return change * tf.cast(size, change.dtype)


def _changed(old: Any, change: Any, sizes: Any) -> Any:
    if old.dtype == tf.bool:
        return tf.math.logical_xor(old, change > 0)
    if not old.dtype.is_floating:
        return old + tf.cast(change, old.dtype)
    mean = tf.math.divide_no_nan(change, _total(sizes, change))
    return tf.cast(_wide(old) + mean, old.dtype)


def _sum(values: Sequence[Any]) -> list[Any]:
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
