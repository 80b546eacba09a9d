"""What was not finite, kept from batch to batch, in variables that XLA can write.

A ledger belongs to an optimizer and is none of its variables: nothing here is saved.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _messages, _strategy, _xla
from keras_sgd_plus._nonfinite import LOSS, NO_POSITION, Faults

CAPACITY = 1_000  # groups that are remembered singly
NO_REPLICA = -1


class Skipped(NamedTuple):
    """A group of examples that changed nothing, because something was not finite.

    Attributes:
        batch: the batch's number since metrics were last reset, so in its epoch.
        iterations: the number of updates before that batch, raw.
        positions: positions of its examples in the batch as handed over.
        cause: "loss", or the path of the variable whose gradient was not finite.
        replica: which replica of `tf.distribute` visited it; the positions are those in
            its part of the batch. None where there is one.
    """

    batch: int
    iterations: int
    positions: tuple[int, ...]
    cause: str
    replica: int | None = None


class Ledger:
    """Counts and rows of one optimizer, for groups of one size.

    Args:
        group_size: k.
        raises: whether its groups are to be raised, or were skipped.
    """

    def __init__(self, group_size: int, raises: bool) -> None:
        self.raises = raises
        self.batch, self.in_epoch, self.total = (_xla.variable(()) for _ in range(3))
        # The last row takes what is not remembered. Columns: batch, iterations,
        # replica, cause, positions.
        self.rows = _xla.variable((CAPACITY + 1, 4 + group_size))
        self.causes = ["loss"]
        self.is_reported = False
        self.watchers = 0  # callers that look for faults themselves

    def is_halted(self) -> Any:
        """() bool: whether a fault waits to be raised, and no batch may train."""
        return self.total > 0 if self.raises else tf.constant(False)

    def note(self, faults: Faults) -> Any:
        """What other replicas have to know: the count and the first row, (2 + k,)."""
        row = tf.cast(faults.rows[tf.cast(self.is_halted(), tf.int32)], tf.int64)
        return tf.concat([[self._count(faults)], row], 0)

    def close(self, iterations: Any, faults: Faults, logs: Any, notes: Any) -> Any:
        """Adds a batch, in the graph that walks it; its logs, with the count of groups.

        Args:
            iterations: () int64, the raw counter before the batch.
            faults: of the batch; of this replica's shard.
            logs: of the batch.
            notes: (replicas, 2 + k), those of all replicas, or None if there is one.
        """
        count = everyone = self._count(faults)
        rows: Any = tf.cast(faults.rows, tf.int64)
        replica, is_first, is_last = NO_REPLICA, True, True
        if notes is not None:
            replica, local = _strategy.replica(), _strategy.local_replica()
            is_first, is_last = local == 0, local == _strategy.num_local_replicas() - 1
            everyone = tf.reduce_sum(notes[:, 0])
            if self.raises:  # on every worker, wherever it was
                replica = tf.argmax(notes[:, 0] > 0)
                count, rows = tf.minimum(everyone, 1), notes[replica, 1:][None]

        def write() -> Any:
            first = tf.cast(self.total.read_value(), tf.int64)
            i = tf.range(tf.shape(rows)[0], dtype=tf.int64)
            places = tf.where(i < count, tf.minimum(first + i, CAPACITY), CAPACITY)
            same = (self.batch.read_value(), iterations, replica)
            columns = [tf.fill(tf.shape(i), tf.cast(value, tf.int64)) for value in same]
            values = tf.concat([tf.stack(columns, 1), rows], 1)
            self.rows.scatter_nd_update(places[:, None], values)
            return tf.constant(0)

        tf.cond(count > 0, write, lambda: tf.constant(0))
        # The replicas of a process come here one after the other.
        if is_last:
            self.batch.assign_add(1)
        if is_first:
            self.in_epoch.assign_add(everyone)
        self.total.assign_add(count)
        if self.raises:
            _raise_in_graph(self)
        elif isinstance(logs, dict):
            logs = {**logs, "skipped": self.in_epoch.read_value()}
        return logs

    def _count(self, faults: Faults) -> Any:
        return tf.cast(faults.count, tf.int64) - tf.cast(self.is_halted(), tf.int64)

    def entries(self) -> list[Skipped]:
        """What is remembered, in order of visit."""
        size = min(int(self.total.numpy()), CAPACITY)
        return [self.entry(row) for row in self.rows[:size].numpy().tolist()]

    def entry(self, row: Any) -> Skipped:
        """A row of the ledger in words."""
        batch, iterations, replica, cause, *positions = (int(i) for i in row)
        known = tuple(i for i in positions if i != NO_POSITION)
        text = self.causes[max(cause, LOSS)]
        known_replica = None if replica == NO_REPLICA else replica
        return Skipped(batch, iterations, known, text, known_replica)

    def clear(self) -> None:
        """Forgets everything but the number of the batch."""
        self.total.assign(0)
        self.in_epoch.assign(0)
        self.is_reported = False


_ledgers: weakref.WeakKeyDictionary[Any, dict[tuple[int, bool], Ledger]] = (
    weakref.WeakKeyDictionary()
)


def of(optimizer: Any) -> Ledger | None:
    """The ledger for an optimizer as it is set now, or None where nobody looks."""
    if optimizer.nonfinite == "propagate":
        return None
    known = _ledgers.setdefault(optimizer, {})
    key = optimizer.examples_per_update, optimizer.nonfinite == "raise"
    if key not in known:
        known[key] = Ledger(*key)
    return known[key]


def open_for(update: Any) -> Ledger | None:
    """The ledger for a walk that is being traced, or None where nobody looks."""
    ledger = of(update.optimizer)
    if ledger is not None:
        ledger.causes = ["loss", *(v.path for v in update.carry.trainable)]
    return ledger


def every(optimizer: Any, raises: bool | None = None) -> list[Ledger]:
    """The ledgers of an optimizer that exist: all, or those that raise, or do not."""
    known = _ledgers.get(optimizer, {}).values()
    return [ledger for ledger in known if raises in (None, ledger.raises)]


def reset_epoch(optimizer: Any) -> None:
    """Begins to count batches and groups anew, as metrics do."""
    for ledger in every(optimizer):
        ledger.batch.assign(0)
        ledger.in_epoch.assign(0)


def begin(optimizer: Any) -> None:
    """Forgets what an earlier `fit` has reported."""
    for ledger in every(optimizer):
        if ledger.is_reported:
            ledger.clear()


def report(optimizer: Any) -> str | None:
    """The warning for the end of `fit`, or None where nothing was skipped."""
    texts = []
    for ledger in every(optimizer, raises=False):
        ledger.is_reported = True
        total = int(ledger.total.numpy())
        if total:
            texts.append(_messages.skipped(total, ledger.entries()))
    return " ".join(texts) or None


def raise_fault(optimizer: Any) -> None:
    """Raises FloatingPointError where `nonfinite="raise"` has ended a batch early."""
    for ledger in every(optimizer, raises=True):
        if int(ledger.total.numpy()):
            entry = ledger.entries()[0]
            ledger.clear()
            raise FloatingPointError(_messages.not_finite(entry))


@contextlib.contextmanager
def watched(optimizer: Any) -> Iterator[None]:
    """Tells `_raise_in_graph` that the caller looks for faults after each batch."""
    ledger = of(optimizer)
    if ledger is None:
        yield
        return
    ledger.watchers += 1
    try:
        yield
    finally:
        ledger.watchers -= 1


def _raise_in_graph(ledger: Ledger) -> None:
    """Raises from the running graph, for functions of users, which nobody watches.

    TensorFlow hands it on as `tf.errors.OpError` with the same text.
    """
    if ledger.watchers or tf.executing_eagerly():
        return

    def fail() -> Any:
        row = ledger.rows[0]
        with tf.control_dependencies([row]):
            ledger.total.assign(0)
            ledger.in_epoch.assign(0)
        return tf.numpy_function(_fail(ledger), [row], tf.int32)

    tf.cond(ledger.total > 0, fail, lambda: tf.constant(0))


def _fail(ledger: Ledger) -> Any:
    def fail(row: Any) -> Any:
        raise FloatingPointError(_messages.not_finite(ledger.entry(row)))

    return fail
