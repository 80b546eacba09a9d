"""Rows of one table, moved one after the other, in place.

XLA updates in place only if no later op reads the old table. `after` adds that ordering
where XLA cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus import _lowering
from keras_sgd_plus._pending.clocks import Idle
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

_ROWS_AT_ONCE = 512  # at the end of a batch
_LINE = 64  # bytes that a processor fetches at once
_MAX_LINES = 4  # of a row that are asked for; more come by themselves

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class Table(NamedTuple):
    """The tensors of one table."""

    weight: Tensor  # (rows, width)
    velocity: Tensor  # (rows, width), or None without momentum
    last: Tensor  # (rows,) int32, up to which update each row is done


Since = Callable[[Any], Idle]  # number of an update -> idle updates since, as columns


def fetched(table: Table, ids: Tensor) -> Tensor:
    """The same ids, (k,) int32, after reads that make the processor fetch their rows.

    Else the processor would wait for one row after the other.
    """
    tables = [t for t in table[:2] if t is not None]

    def body(r: Any, total: Tensor) -> tuple[Any, ...]:
        at = _one(ids, r)
        parts = [tf.cast(tf.gather(table.last, at), total.dtype)]
        for each in tables:
            step = _LINE // each.dtype.size
            for column in range(0, min(each.shape[1], _MAX_LINES * step), step):
                place = tf.stack([at, tf.constant([column])], 1)
                parts.append(tf.gather_nd(each, place))
        return r + 1, total + tf.add_n(parts)

    (total,) = _for_each(ids, body, tf.zeros((1,), tables[0].dtype))
    return _lowering.after(total, ids)


def read(table: Table, ids: Tensor, since: Since) -> Tensor:
    """The rows as they are after the updates that they have missed, (k, width)."""
    width = table.weight.shape[1]

    def body(r: Any, rows: Tensor) -> tuple[Any, ...]:
        at = _one(ids, r)
        weight, velocity = (t if t is None else tf.gather(t, at) for t in table[:2])
        row = _moved(since(tf.gather(table.last, at)), weight, velocity)
        return r + 1, put(rows, tf.stack([r, 0]), row)

    shape = tf.stack([tf.shape(ids)[0], width])
    (rows,) = _for_each(ids, body, tf.zeros(shape, table.weight.dtype))
    rows.set_shape((ids.shape[0], width))
    return rows


def move(
    table: Table,
    ids: Tensor,
    change: Tensor,
    since: Since,
    number: Tensor,
    factor: Tensor,
) -> Table:
    """The table after an update, in which an id that repeats is moved by each change.

    Args:
        table: the table before.
        ids: (k,) int32.
        change: (k, width), learning rate times gradient.
        since: counts the update itself.
        number: () int32, that of the update.
        factor: times a change is subtracted from the weight: 1, or 1 + momentum with
            Nesterov.
    """

    def body(r: Any, *old: Tensor) -> tuple[Any, ...]:
        weights, velocities, last = old[0], old[1:-1], old[-1]
        at = _one(ids, r)
        start, hidden = tf.stack([at[0], 0]), at * _lowering.one()
        due = _one(change, r)
        before = tf.gather(last, at)
        idle = since(before)
        velocity = tf.gather(velocities[0], at) if velocities else None
        row = _moved(idle, tf.gather(weights, at), velocity)
        new = [put(weights, start, row - factor * due)]
        seen = tf.gather(new[0], hidden)
        if velocities:
            row = _lowering.after(seen, idle.velocity * velocity - due)
            new.append(put(velocities[0], start, row))
            seen = tf.gather(new[1], hidden)
        now = _lowering.after(seen[0, :1], tf.maximum(before, number))
        return r + 1, *new, put(last, at, now)

    return _table(_for_each(ids, body, *(t for t in table if t is not None)))


def finish(table: Table, since: Since, number: Tensor) -> Table:
    """The table with all rows up to date: each block of rows is read once."""
    num_rows, width = table.weight.shape
    size = min(_ROWS_AT_ONCE, num_rows)

    def body(i: Any, weights: Any, *velocities: Any) -> tuple[Any, ...]:
        first = tf.minimum(i * size, num_rows - size)
        start = tf.stack([first, 0])
        behind = tf.slice(table.last, [first], [size])
        is_new = first + tf.range(size) >= i * size  # the last two blocks overlap
        idle = since(tf.where(is_new, behind, number))
        weight, *velocity = (
            tf.slice(t, start, (size, width)) for t in (weights, *velocities)
        )
        weights = put(weights, start, _moved(idle, weight, *(velocity or [None])))
        if not velocities:
            return i + 1, weights
        seen = tf.gather(weights, start[:1] * _lowering.one())
        rows = _lowering.after(seen, idle.velocity * velocity[0])
        return i + 1, weights, put(velocities[0], start, rows)

    old = [t for t in table[:2] if t is not None]
    return _table([*_loop(-(-num_rows // size), body, *old), table.last])


def _one(tensor: Tensor, r: Any) -> Tensor:
    return tf.gather(tensor, tf.reshape(r, (1,)))  # a slice would fix r for XLA


def _moved(idle: Idle, weight: Tensor, velocity: Tensor) -> Tensor:
    if idle.weight is not None:
        weight = idle.weight * weight
    return weight if velocity is None else weight + idle.carried * velocity


def _table(tensors: list[Tensor]) -> Table:
    weight, *velocity, last = tensors
    return Table(weight, velocity[0] if velocity else None, last)


def _for_each(ids: Tensor, body: Callable[..., Any], *state: Any) -> list[Any]:
    num = tf.shape(ids)[0] if ids.shape[0] is None else ids.shape[0]
    return _loop(num, body, *state)


def _loop(num: Any, body: Callable[..., Any], *state: Any) -> list[Any]:
    _, *found = tf.while_loop(
        lambda i, *_: i < num,
        body,
        (tf.constant(0), *state),
        parallel_iterations=1,
        name=xla.TAKEN,
    )
    return found
