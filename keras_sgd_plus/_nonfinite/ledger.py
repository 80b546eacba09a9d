"""Remembers bad groups from batch to batch, in variables that XLA can write.

A ledger belongs to an optimizer and is none of its variables: nothing here is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._nonfinite.find import LOSS, NO_POSITION, Skips
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Structure, Tensor

CAPACITY = 1_000  # groups that are remembered singly
NO_REPLICA = -1
OUTSIDE = -1  # number of `fit`, and epoch, of a batch that is none of `fit`


class Skipped(NamedTuple):
    """A group of examples that changed nothing, because something was not finite.

    Attributes:
        batch: the batch's number in its epoch of `fit`, from 0; for any other batch,
            its number since metrics were last reset.
        iterations: the number of updates before that batch, raw.
        positions: positions of its examples in the batch as handed over.
        cause: "loss", or the path of the variable whose gradient was not finite.
        replica: which replica of `tf.distribute` visited it; the positions are those in
            its part of the batch. None where there is one.
        epoch: of `fit`, from 0; None for a batch that `fit` did not hand over.
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    batch: int
    iterations: int
    positions: tuple[int, ...]
    cause: str
    replica: int | None = None
    epoch: int | None = None


class Ledger:
    """Counts and rows of one optimizer, for groups of one size.

    Args:
        group_size: k.
        raises: whether its groups are to be raised, or were skipped.
    """

    def __init__(self, group_size: int, raises: bool) -> None:
        self.raises = raises
        variable = private_tensorflow.variable
        self.in_epoch, self.total = variable(()), variable(())
        # Groups beyond the capacity overwrite the last row. Columns: number of `fit`,
        # epoch, batch, iterations, replica, cause, positions.
        self.rows = variable((CAPACITY + 1, 6 + group_size))
        self.fit = OUTSIDE  # number of the `fit` whose epochs are told
        self.causes = ["loss"]
        self.is_reported = False
        self.watchers = 0  # callers that look for bad groups themselves

    def skip_all(self) -> Any:
        """() bool: whether a bad group waits to be raised, and no batch may train."""
        return self.total > 0 if self.raises else tf.constant(False)

    def note(self, skips: Skips) -> Any:
        """A note for all replicas: the count and the first row, (2 + k,)."""
        row = tf.cast(skips.rows[tf.cast(self.skip_all(), tf.int32)], tf.int64)
        return tf.concat([[self._count(skips)], row], 0)

    def close(
        self,
        place: Tensor,
        iterations: Tensor,
        skips: Skips,
        logs: Structure,
        notes: Tensor,
    ) -> Any:
        """Adds a batch, in the graph that walks it; its logs, with the count of groups.

        Args:
            place: (3,) int64, the number of `fit`, the epoch and that of the batch.
            iterations: () int64, the raw counter before the batch.
            skips: of the batch; of this replica's shard.
            logs: of the batch.
            notes: (replicas, 2 + k), the note of each replica (`note`), or None
                if there is one replica.
        """
        count = everyone = self._count(skips)
        rows: Tensor = tf.cast(skips.rows, tf.int64)
        replica, is_first = NO_REPLICA, True
        if notes is not None:
            replica, is_first = strategy.replica(), strategy.local_replica() == 0
            everyone = tf.reduce_sum(notes[:, 0])
            if self.raises:  # every worker writes it, wherever the bad group was
                replica = tf.argmax(notes[:, 0] > 0)
                count, rows = tf.minimum(everyone, 1), notes[replica, 1:][None]

        def write() -> Any:
            self._write(rows, count, [*tf.unstack(place), iterations, replica])
            return tf.constant(0)

        tf.cond(count > 0, write, lambda: tf.constant(0))
        if is_first:
            self.in_epoch.assign_add(everyone)
        self.total.assign_add(count)
        if not self.raises and isinstance(logs, dict):
            logs = {**logs, "skipped": self.in_epoch.read_value()}
        return logs

    def raise_in_graph(self, words: Callable[[Skipped], str]) -> None:
        """Raises from the running graph, for functions of users, which nobody watches.

        TensorFlow hands it on as `tf.errors.OpError` with the same text.

        Args:
            words: gives the text for a group.
        """
        if not self.raises or self.watchers or tf.executing_eagerly():
            return

        def raise_row(row: Any) -> Any:
            raise FloatingPointError(words(self.entry(row)))

        def fail() -> Any:
            row = self.rows[0]
            with tf.control_dependencies([row]):
                self.total.assign(0)
                self.in_epoch.assign(0)
            return tf.numpy_function(raise_row, [row], tf.int32)

        tf.cond(self.total > 0, fail, lambda: tf.constant(0))

    def entries(self) -> list[Skipped]:
        """The groups that are remembered, in order of visit."""
        size = min(int(self.total.numpy()), CAPACITY)
        return [self.entry(row) for row in self.rows[:size].numpy().tolist()]

    def entry(self, row: Any) -> Skipped:
        """One group from its row."""
        fit, epoch, batch, iterations, replica, cause, *positions = map(int, row)
        known = tuple(i for i in positions if i != NO_POSITION)
        text = self.causes[max(cause, LOSS)]
        known_replica = None if replica == NO_REPLICA else replica
        known_epoch = epoch if fit == self.fit != OUTSIDE else None
        return Skipped(batch, iterations, known, text, known_replica, known_epoch)

    def clear(self) -> None:
        """Forgets everything."""
        self.total.assign(0)
        self.in_epoch.assign(0)
        self.is_reported = False

    def _count(self, skips: Skips) -> Any:
        return tf.cast(skips.count, tf.int64) - tf.cast(self.skip_all(), tf.int64)

    def _write(self, rows: Tensor, count: Tensor, same: Sequence[Any]) -> None:
        # `same` is what all rows have in front.
        first = tf.cast(self.total.read_value(), tf.int64)
        i = tf.range(tf.shape(rows)[0], dtype=tf.int64)
        places = tf.where(i < count, tf.minimum(first + i, CAPACITY), CAPACITY)
        columns = [tf.fill(tf.shape(i), tf.cast(value, tf.int64)) for value in same]
        values = tf.concat([tf.stack(columns, 1), rows], 1)
        self.rows.scatter_nd_update(places[:, None], values)
