"""What was not finite, kept from batch to batch, in variables that XLA can write.

A ledger belongs to an optimizer and is none of its variables: nothing here is saved.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _messages, _xla
from keras_sgd_plus._nonfinite import LOSS, NO_POSITION, Faults

CAPACITY = 1_000  # groups that are remembered singly


class Skipped(NamedTuple):
    """A group of examples that changed nothing, because something was not finite.

    Attributes:
        batch: the batch's number since metrics were last reset, so in its epoch.
        iterations: the number of updates before that batch, raw.
        positions: positions of its examples in the batch as handed over.
        cause: "loss", or the path of the variable whose gradient was not finite.
    """

    batch: int
    iterations: int
    positions: tuple[int, ...]
    cause: str


class Ledger:
    """Counts and rows of one optimizer, for groups of one size.

    Args:
        group_size: k.
        raises: whether its groups are to be raised, or were skipped.
    """

    def __init__(self, group_size: int, raises: bool) -> None:
        self.raises = raises
        self.batch, self.in_epoch, self.total = (_xla.variable(()) for _ in range(3))
        # The last row takes what is not remembered. Columns: batch, iterations, cause,
        # positions.
        self.rows = _xla.variable((CAPACITY + 1, 3 + group_size))
        self.causes = ["loss"]
        self.is_reported = False

    def is_halted(self) -> Any:
        """() bool: whether a fault waits to be raised, and no batch may train."""
        return self.total > 0 if self.raises else tf.constant(False)

    def close(self, iterations: Any, faults: Faults, logs: Any) -> Any:
        """Adds a batch, in the graph that walks it; its logs, with the count of groups.

        Args:
            iterations: () int64, the raw counter before the batch.
            faults: of the batch.
            logs: of the batch.
        """
        before = tf.cast(self.is_halted(), tf.int64)
        count = tf.cast(faults.count, tf.int64) - before

        def write() -> Any:
            first = tf.cast(self.total.read_value(), tf.int64)
            i = tf.range(tf.shape(faults.rows)[0], dtype=tf.int64)
            places = tf.where(i < count, tf.minimum(first + i, CAPACITY), CAPACITY)
            batch = tf.fill(tf.shape(i), self.batch.read_value())
            columns = [batch, tf.fill(tf.shape(i), tf.cast(iterations, tf.int64))]
            rows = tf.cast(faults.rows, tf.int64)
            rows = tf.concat([tf.stack(columns, 1), rows], 1)
            self.rows.scatter_nd_update(places[:, None], rows)
            return tf.constant(0)

        tf.cond(count > 0, write, lambda: tf.constant(0))
        self.batch.assign_add(1)
        self.in_epoch.assign_add(count)
        self.total.assign_add(count)
        if self.raises:
            _raise_in_graph(self)
        elif isinstance(logs, dict):
            logs = {**logs, "skipped": self.in_epoch.read_value()}
        return logs

    def entries(self) -> list[Skipped]:
        """What is remembered, in order of visit."""
        size = min(int(self.total.numpy()), CAPACITY)
        return [self.entry(row) for row in self.rows[:size].numpy().tolist()]

    def entry(self, row: Any) -> Skipped:
        """A row of the ledger in words."""
        batch, iterations, cause, *positions = (int(i) for i in row)
        known = tuple(i for i in positions if i != NO_POSITION)
        return Skipped(batch, iterations, known, self.causes[max(cause, LOSS)])

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


class _Watched(threading.local):
    by_caller = False


_watched = _Watched()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Tells `_raise_in_graph` that the caller looks for faults after each batch."""
    before, _watched.by_caller = _watched.by_caller, True
    try:
        yield
    finally:
        _watched.by_caller = before


def _raise_in_graph(ledger: Ledger) -> None:
    """Raises from the running graph, for functions of users, which nobody watches.

    TensorFlow hands it on as `tf.errors.OpError` with the same text.
    """
    if _watched.by_caller or tf.executing_eagerly():
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
