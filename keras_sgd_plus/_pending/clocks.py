"""Many updates of rows without a gradient, made at once.

With a = 1 - learning rate * weight decay and momentum m, an update without a gradient
is (Keras's rule; c = 1, or with Nesterov c = m)

    v <- m v;   w <- a w + c v

so n of them are linear in the row and its velocity, with the same three coefficients
for all entries:

    v <- m^n v;   w <- A_n w + B_n v;   A_n = a^n;   B_n = a B_(n-1) + c m^n,  B_0 = 0

which is B_n = c m (a^n - m^n) / (a - m), or c n m^n where a = m. The recursion needs no
case for a = m or m = 1, and does not cancel. Where the learning rate changes within a
batch and weights decay, a changes too, and the coefficients are those of the product
of single updates. All in float64, since they stand for many roundings.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Tensor

BLOCK = 256  # updates whose products are kept one by one


class Idle(NamedTuple):
    """Coefficients of idle updates, arrays of one shape, float64."""

    weight: Tensor  # A: of the weight in the new weight
    carried: Any  # B: of the velocity in the new weight
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

    def __init__(self, single: Idle, num_updates: Tensor) -> None:
        zeros = tf.zeros(tf.reshape(num_updates + 1, (1,)), tf.float64)

        def body(n: Tensor, now: Idle, table: Idle) -> tuple[Any, ...]:
            return n + 1, then(now, single), _put(table, n, now)

        none = _identity(())
        _, _, self._table = tf.while_loop(
            lambda n, *_: n <= num_updates, body, (0, none, Idle(zeros, zeros, zeros))
        )

    def start(self) -> Tensor:
        """The state before the first update."""
        return tf.constant(0)

    def count(self, state: Any) -> Tensor:
        """() int32, the updates so far."""
        return state

    def advance(self, state: Any, single: Idle, applies: Tensor) -> Tensor:
        """The state after one more update, if it applies, () bool or None."""
        del single
        return state + (1 if applies is None else tf.cast(applies, tf.int32))

    def since(self, state: Any, last: Tensor) -> Idle:
        """The updates from number `last`, int32 of any shape, until now."""
        return _at(self._table, state - last)


class Clock(Protocol):
    """Counts the updates of a batch, and gives their effect on rows without a gradient.

    Its state is tensors that the loop carries.
    """

    def start(self) -> Tensor:
        """The state before the first update."""
        ...

    def count(self, state: Any) -> Tensor:
        """() int32, the updates so far."""
        ...

    def advance(self, state: Any, single: Idle, applies: Tensor) -> Tensor:
        """The state after one more update, if it applies, () bool or None."""
        ...

    def since(self, state: Any, last: Tensor) -> Idle:
        """The updates from number `last`, int32 of any shape, until now."""
        ...


class Running(NamedTuple):
    """The state of `ScheduledDecay`."""

    count: Tensor  # () int32
    inside: Idle  # (updates,): from each to the end of its block, or until now
    blocks: Idle  # (blocks,): from the end of each block until now


class ScheduledDecay:
    """Counts updates that differ, and keeps their products as they come.

    An update changes the products of its own block and one per block before, so that
    it costs the square root of what it would to keep all products.
    """

    def __init__(self, num_updates: Tensor) -> None:
        self._num_blocks = num_updates // BLOCK + 1

    def start(self) -> Running:
        """The state before the first update."""
        inside = tf.reshape(self._num_blocks * BLOCK, (1,))
        blocks = tf.reshape(self._num_blocks, (1,))
        return Running(tf.constant(0), _identity(inside), _identity(blocks))

    def count(self, state: Running) -> Tensor:
        """() int32, the updates so far."""
        return state.count

    def advance(self, state: Running, single: Idle, applies: Tensor) -> Running:
        """The state after one more update, if it applies, () bool or None."""
        block, place = state.count // BLOCK, state.count % BLOCK
        applies = tf.constant(True) if applies is None else applies
        own = block * BLOCK + tf.range(BLOCK)
        window = _at(state.inside, own)
        is_before = tf.logical_and(tf.range(BLOCK) <= place, applies)
        window = _where(is_before, then(window, single), window)
        earlier = tf.range(self._num_blocks) < block
        moved = then(state.blocks, single)
        blocks = _where(tf.logical_and(earlier, applies), moved, state.blocks)
        return Running(
            state.count + tf.cast(applies, tf.int32),
            _put(state.inside, block * BLOCK, window),
            blocks,
        )

    def since(self, state: Running, last: Tensor) -> Idle:
        """The updates from number `last`, int32 of any shape, until now."""
        return then(_at(state.inside, last), _at(state.blocks, last // BLOCK))


def _identity(shape: Any) -> Idle:
    one, zero = tf.ones(shape, tf.float64), tf.zeros(shape, tf.float64)
    return Idle(one, zero, one)


def _at(table: Idle, places: Tensor) -> Idle:
    return Idle(*(tf.gather(column, places) for column in table))


def _where(condition: Any, new: Idle, old: Idle) -> Idle:
    pairs = zip(new, old, strict=True)
    return Idle(*(tf.where(condition, a, b) for a, b in pairs))


def _put(table: Idle, start: Tensor, values: Idle) -> Idle:
    pairs = zip(table, values, strict=True)
    place = tf.reshape(start, (1,))
    put: Any = keras.ops.slice_update
    return Idle(*(put(t, place, tf.reshape(v, (-1,))) for t, v in pairs))
