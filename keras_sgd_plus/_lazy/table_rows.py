"""Rows of one table, moved one after the other, with the updates that they have missed.

With a = 1 - learning rate * weight decay and momentum m, an update without a gradient
is (Keras's rule; c = 1, or with Nesterov c = m)

    v <- m v;   w <- a w + c v

so n of them are linear in the row and its velocity, with the same three coefficients
for all entries (`Idle`):

    v <- m^n v;   w <- A_n w + B_n v;   A_n = a^n;   B_n = a B_(n-1) + c m^n,  B_0 = 0

which is B_n = c m (a^n - m^n) / (a - m), or c n m^n where a = m. The recursion needs no
case for a = m or m = 1, and does not cancel. Where the learning rate changes within a
batch and weights decay, a changes too, and the coefficients are those of the product
of single updates. All in float64, since they stand for many roundings. A *clock* counts
the updates of a batch, and gives the coefficients since any of them.

XLA changes a table in place only if no later operation reads the old one. `after` adds
that ordering where XLA cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._forms import tracing
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor

CLOCK_BLOCK = 256  # updates whose products are kept one by one


class Idle(NamedTuple):
    """Coefficients of idle updates, arrays of one shape, float64."""

    weight: Any  # A: of the weight in the new weight
    carried: Tensor  # B: of the velocity in the new weight
    velocity: Tensor  # of the velocity in the new velocity


def then(first: Idle, second: Idle) -> Idle:
    """The coefficients of some updates and then some more."""
    return Idle(
        first.weight * second.weight,
        second.weight * first.carried + second.carried * first.velocity,
        first.velocity * second.velocity,
    )


def once(momentum: Tensor, nesterov: bool, decay: Tensor) -> Idle:
    """One idle update.

    Args:
        momentum: m, () float64.
        nesterov: whether c is m instead of 1.
        decay: () float64, learning rate * weight decay.
    """
    m = momentum
    return Idle(1 - decay, m * m if nesterov else m, m)


class ConstantDecay:
    """Counts updates that are all alike; its state is their number.

    Args:
        single: one idle update.
        num_updates: () int32, the most that there will be.
    """

    def __init__(self, single: Idle, num_updates: Any) -> None:
        zeros = tf.zeros(tf.reshape(num_updates + 1, (1,)), tf.float64)

        def body(n: Tensor, now: Idle, table: Idle) -> tuple[Tensor, Idle, Idle]:
            return n + 1, then(now, single), _put_idle(table, n, now)

        none = _identity(())
        _, _, self._table = tf.while_loop(
            lambda n, *_: n <= num_updates, body, (0, none, Idle(zeros, zeros, zeros))
        )

    def start(self) -> Tensor:
        """The state before the first update."""
        return tf.constant(0)

    def count(self, state: Tensor) -> Tensor:
        """() int32, the updates so far."""
        return state

    def advance(self, state: Tensor, single: Idle, applies: Tensor | None) -> Tensor:
        """The state after one more update, if it applies, () bool or None."""
        return state + (1 if applies is None else tf.cast(applies, tf.int32))

    def since(self, state: Tensor, last: Tensor) -> Idle:
        """The updates from number `last`, int32 of any shape, until now."""
        return _at(self._table, state - last)


class Running(NamedTuple):
    """The state of `ScheduledDecay`."""

    count: Any  # () int32
    inside: Idle  # (updates,): from each to the end of its block, or until now
    blocks: Idle  # (blocks,): from the end of each block until now


class ScheduledDecay:
    """Counts updates that differ, and keeps their products as they come.

    An update changes the products of its own block and one per block before, so that
    it costs the square root of what it would to keep all products.
    """

    def __init__(self, num_updates: int | Tensor) -> None:
        self._num_blocks = num_updates // CLOCK_BLOCK + 1

    def start(self) -> Running:
        """The state before the first update."""
        inside = tf.reshape(self._num_blocks * CLOCK_BLOCK, (1,))
        blocks = tf.reshape(self._num_blocks, (1,))
        return Running(tf.constant(0), _identity(inside), _identity(blocks))

    def count(self, state: Running) -> Tensor:
        """() int32, the updates so far."""
        return state.count

    def advance(self, state: Running, single: Idle, applies: Tensor | None) -> Running:
        """The state after one more update, if it applies, () bool or None."""
        block, place = state.count // CLOCK_BLOCK, state.count % CLOCK_BLOCK
        applies = tf.constant(True) if applies is None else applies
        own = block * CLOCK_BLOCK + tf.range(CLOCK_BLOCK)
        window = _at(state.inside, own)
        is_before = tf.logical_and(tf.range(CLOCK_BLOCK) <= place, applies)
        window = _where(is_before, then(window, single), window)
        earlier = tf.range(self._num_blocks) < block
        moved = then(state.blocks, single)
        blocks = _where(tf.logical_and(earlier, applies), moved, state.blocks)
        return Running(
            state.count + tf.cast(applies, tf.int32),
            _put_idle(state.inside, block * CLOCK_BLOCK, window),
            blocks,
        )

    def since(self, state: Running, last: Tensor) -> Idle:
        """The updates from number `last`, int32 of any shape, until now."""
        return then(_at(state.inside, last), _at(state.blocks, last // CLOCK_BLOCK))


# Counts the updates of a batch, and gives their effect on rows without a gradient. Its
# state is tensors that the loop carries.
Clock = ConstantDecay | ScheduledDecay


def _identity(shape: Tensor | Sequence[int]) -> Idle:
    one, zero = tf.ones(shape, tf.float64), tf.zeros(shape, tf.float64)
    return Idle(one, zero, one)


def _at(table: Idle, places: Tensor) -> Idle:
    return Idle(*(tf.gather(column, places) for column in table))


def _where(condition: Tensor, new: Idle, old: Idle) -> Idle:
    pairs = zip(new, old, strict=True)
    return Idle(*(tf.where(condition, a, b) for a, b in pairs))


def _put_idle(table: Idle, start: Tensor, values: Idle) -> Idle:
    pairs = zip(table, values, strict=True)
    place = tf.reshape(start, (1,))
    put: Any = keras.ops.slice_update
    return Idle(*(put(t, place, tf.reshape(v, (-1,))) for t, v in pairs))


_ROWS_AT_ONCE = 512  # at the end of a batch
_LINE = 64  # bytes that a processor fetches at once
_MAX_LINES = 4  # of a row that are asked for; more come by themselves

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class Table(NamedTuple):
    """The tensors of one table."""

    weight: Tensor  # (rows, width)
    velocity: Tensor | None  # (rows, width), or None without momentum
    last: Tensor  # (rows,) int32, up to which update each row is done


# Number of an update -> idle updates since, as columns.
Since = Callable[[Tensor], Idle]


def fetched(table: Table, ids: Tensor) -> Tensor:
    """The same ids, (k,) int32, after reads that make the processor fetch their rows.

    Else the processor would wait for one row after the other.
    """
    tables = [t for t in table[:2] if t is not None]

    def body(r: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        at = _one(ids, r)
        parts = [tf.cast(tf.gather(table.last, at), total.dtype)]
        for each in tables:
            step = _LINE // each.dtype.size
            for column in range(0, min(each.shape[1], _MAX_LINES * step), step):
                place = tf.stack([at, tf.constant([column])], 1)
                parts.append(tf.gather_nd(each, place))
        return r + 1, total + tf.add_n(parts)

    (total,) = _for_each(ids, body, tf.zeros((1,), tables[0].dtype))
    return tracing.after(total, ids)


def read(table: Table, ids: Tensor, since: Since) -> Tensor:
    """The rows as they are after the updates that they have missed, (k, width)."""
    width = table.weight.shape[1]

    def body(r: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
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

    def body(r: Tensor, *old: Tensor) -> tuple[Tensor, ...]:
        weights, velocities, last = old[0], old[1:-1], old[-1]
        at = _one(ids, r)
        start, hidden = tf.stack([at[0], 0]), at * tracing.one()
        due = _one(change, r)
        before = tf.gather(last, at)
        idle = since(before)
        velocity: Any = tf.gather(velocities[0], at) if velocities else None
        row = _moved(idle, tf.gather(weights, at), velocity)
        new = [put(weights, start, row - factor * due)]
        seen = tf.gather(new[0], hidden)
        if velocities:
            row = tracing.after(seen, idle.velocity * velocity - due)
            new.append(put(velocities[0], start, row))
            seen = tf.gather(new[1], hidden)
        now = tracing.after(seen[0, :1], tf.maximum(before, number))
        return r + 1, *new, put(last, at, now)

    return _table(_for_each(ids, body, *(t for t in table if t is not None)))


def finish(table: Table, since: Since, number: Tensor) -> Table:
    """The table with all rows up to date: each block of rows is read once."""
    num_rows: Any
    num_rows, width = table.weight.shape
    size = min(_ROWS_AT_ONCE, num_rows)

    def body(i: Tensor, weights: Tensor, *velocities: Tensor) -> tuple[Tensor, ...]:
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
        seen = tf.gather(weights, start[:1] * tracing.one())
        rows = tracing.after(seen, idle.velocity * velocity[0])
        return i + 1, weights, put(velocities[0], start, rows)

    old = [t for t in table[:2] if t is not None]
    return _table([*_in_turns(-(-num_rows // size), body, *old), table.last])


def _one(tensor: Tensor, r: Tensor) -> Tensor:
    return tf.gather(tensor, tf.reshape(r, (1,)))  # a slice would fix r for XLA


def _moved(idle: Idle, weight: Any, velocity: Tensor | None) -> Tensor:
    if idle.weight is not None:
        weight = idle.weight * weight
    return weight if velocity is None else weight + idle.carried * velocity


def _table(tensors: list[Tensor]) -> Table:
    weight, *velocity, last = tensors
    return Table(weight, velocity[0] if velocity else None, last)


def _for_each(
    ids: Tensor, body: Callable[..., tuple[Tensor, ...]], *state: Tensor
) -> list[Tensor]:
    num = tf.shape(ids)[0] if ids.shape[0] is None else ids.shape[0]
    return _in_turns(num, body, *state)


def _in_turns(
    num: Any, body: Callable[..., tuple[Tensor, ...]], *state: Tensor
) -> list[Tensor]:
    _, *found = tf.while_loop(
        lambda i, *_: i < num,
        body,
        (tf.constant(0), *state),
        parallel_iterations=1,
        name=xla.TAKEN,
    )
    return found
