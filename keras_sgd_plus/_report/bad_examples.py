"""Groups that were not finite: remembered from batch to batch, and named to users.

A ledger belongs to an optimizer and is none of its variables: nothing here is saved. It
remembers in variables that XLA can write.

The loop knows a position in a batch, as it was handed over. Which batch of which epoch
that is only `fit` knows: a callback may train on batches of its own in between. So the
train function says it before each call that is one of `fit`, in a variable that
compiled steps read. Whether a position leads to a row then depends on who shuffled:
`fit`, a `tf.data.Dataset`, or data that know their order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer, PerObject, Structure, Tensor
from keras_sgd_plus._report.guard import LOSS, NO_POSITION, Skips

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

    def skip_all(self) -> Tensor:
        """() bool: whether a bad group waits to be raised, and no batch may train."""
        return self.total > 0 if self.raises else tf.constant(False)

    def note(self, skips: Any) -> Tensor:
        """A note for all replicas: the count and the first row, (2 + k,)."""
        row = tf.cast(skips.rows[tf.cast(self.skip_all(), tf.int32)], tf.int64)
        return tf.concat([[self._count(skips)], row], 0)

    def close(
        self,
        place: Tensor,
        iterations: Tensor,
        skips: Any,
        logs: Any,
        notes: Tensor | None,
    ) -> Structure:
        """Adds a batch, in the graph that walks it; its logs, with the count of groups.

        A bad group is raised here for functions of users, which nobody watches.

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
            here = replicas.current()
            replica, is_first = here.number, not here.number_here
            everyone = tf.reduce_sum(notes[:, 0])
            if self.raises:  # every worker writes it, wherever the bad group was
                replica = tf.argmax(notes[:, 0] > 0)
                count, rows = tf.minimum(everyone, 1), notes[replica, 1:][None]

        def write() -> Tensor:
            same = [*tf.unstack(place), iterations, replica]  # in front of each row
            first = tf.cast(self.total.read_value(), tf.int64)
            i = tf.range(tf.shape(rows)[0], dtype=tf.int64)
            places = tf.where(i < count, tf.minimum(first + i, CAPACITY), CAPACITY)
            columns = [tf.fill(tf.shape(i), tf.cast(each, tf.int64)) for each in same]
            values = tf.concat([tf.stack(columns, 1), rows], 1)
            self.rows.scatter_nd_update(places[:, None], values)
            return tf.constant(0)

        tf.cond(count > 0, write, lambda: tf.constant(0))
        if is_first:
            self.in_epoch.assign_add(everyone)
        self.total.assign_add(count)
        if not self.raises and isinstance(logs, dict):
            logs = {**logs, "skipped": self.in_epoch.read_value()}
        if self.raises and not self.watchers and not tf.executing_eagerly():
            tf.cond(self.total > 0, self._raise_in_graph, lambda: tf.constant(0))
        return logs

    def _raise_in_graph(self) -> Tensor:
        # TensorFlow hands the error on as `tf.errors.OpError` with the same text.
        def raise_row(row: Tensor) -> Tensor:
            raise FloatingPointError(_not_finite(self.entry(row)))

        row = self.rows[0]
        with tf.control_dependencies([row]):
            self.clear()
        return tf.numpy_function(raise_row, [row], tf.int32)

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

    @property
    def variables(self) -> list[tf.Variable]:
        """All that it holds."""
        return [self.in_epoch, self.total, self.rows]

    def clear(self) -> None:
        """Forgets everything."""
        self.total.assign(0)
        self.in_epoch.assign(0)
        self.is_reported = False

    def _count(self, skips: Skips) -> Tensor:
        return tf.cast(skips.count, tf.int64) - tf.cast(self.skip_all(), tf.int64)


def _outside() -> tf.Variable:
    place = private_tensorflow.variable((3,))
    with tf.init_scope():  # not whenever a step runs that is traced now
        place.assign(_NOWHERE)
    return place


# (3,) int64: the number of a `fit`, its epoch, and the batch that comes next. Outside
# the calls of `fit` the first two are `OUTSIDE`, and batches count from the last reset
# of metrics.
_places: PerObject[Any] = PerObject(_outside)
_NOWHERE = (OUTSIDE, OUTSIDE, 0)
# Optimizer -> the `fit` that its train function is called by, until that returns.
_fits: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def place_of(optimizer: Optimizer) -> tf.Variable:
    """The variable with the place of the next batch, (3,) int64."""
    return _places[optimizer]


def enter_place(optimizer: Optimizer, place: tuple[int, int, int], fit: object) -> None:
    """Says that the call of a train function that follows is one of `fit`.

    Args:
        optimizer: the SGDPlus.
        place: the number of the `fit`, the epoch and the first batch, both from 0.
        fit: the `Run` of it.
    """
    _fits[optimizer] = fit
    _places[optimizer].assign(place)


def leave_place(optimizer: Optimizer) -> None:
    """Says that what follows is none of `fit`; such batches are counted from here."""
    _fits.pop(optimizer, None)
    if optimizer in _places:
        _places[optimizer].assign(_NOWHERE)


class KnownRows:
    """Base of data that know which rows each of their batches holds."""

    def rows_of(self, batch: int, epochs_ago: int = 0) -> Sequence[int]:
        """The rows of a batch, in its order, of this epoch or an earlier one."""
        raise NotImplementedError


def rows_in_words(fit: Any, entries: Sequence[Skipped]) -> str:
    """A sentence that names the rows, or says how to get them; "" where neither is so.

    Args:
        fit: the `Run` of the `fit` that goes on, or None.
        entries: the groups that a message names, one or more.
    """
    if fit is None or fit.data is None:
        return ""
    if any(e.replica is not None or e.epoch is None for e in entries):
        return ""  # of replicas, or of a batch that a callback has brought
    found = [_rows(fit.data, entry, fit.epoch) for entry in entries]
    rows = [row for part in found if part is not None for row in part]
    if rows and None not in found:
        listed = ", ".join(str(row) for row in rows)
        return f"In the data: row{'s' if len(rows) > 1 else ''} {listed}. "
    return _advice(fit.data, entries[0].batch)


def _rows(data: keras_trainer.Data, entry: Skipped, epoch: int) -> list[int] | None:
    if data.shuffles or data.steps_per_epoch or entry.epoch is None:
        return None
    if isinstance(data.dataset, KnownRows):
        rows = data.dataset.rows_of(entry.batch, epoch - entry.epoch)
        if max(entry.positions) >= len(rows):  # a subclass hands over other batches
            return None
        return [int(rows[i]) for i in entry.positions]
    if data.array_batch_size is not None:
        return [entry.batch * data.array_batch_size + i for i in entry.positions]
    return None


def _advice(data: keras_trainer.Data, batch: int) -> str:
    if data.shuffles and isinstance(data.dataset, KnownRows):
        return (
            "fit(shuffle=True) had shuffled the batches: with fit(shuffle=False) this "
            "message names the row. "
        )
    if data.shuffles and data.array_batch_size is not None:
        return (
            "fit(shuffle=True) had shuffled the arrays, so a position is no row of x: "
            "with fit(shuffle=False), or with SeededArrays(x, y) and shuffle=False, "
            "this message names the row. "
        )
    if not isinstance(data.dataset, tf.data.Dataset) or data.steps_per_epoch:
        return ""
    if keras_trainer.shuffles_differently(data.dataset):
        return (
            "The dataset is shuffled anew in each pass, so a position is no row of the "
            "data: use shuffle(..., seed=1, reshuffle_each_iteration=False), and "
            f"next(iter(dataset.skip({batch}))) is that batch, where an id among the "
            "inputs tells the row. "
        )
    return f"next(iter(dataset.skip({batch}))) is that batch. "


_ledgers: PerObject[dict[tuple[int, bool], Ledger]] = PerObject(dict)
_CAUSES = "NaN or infinities in it, and labels out of range"
_SHOWN = 3  # groups that a warning names


def ledger_of(optimizer: Optimizer) -> Ledger | None:
    """The ledger for an SGDPlus as it is set now, or None under "propagate"."""
    if optimizer.nonfinite == "propagate":
        return None
    known = _ledgers[optimizer]
    key = optimizer.examples_per_update, optimizer.nonfinite == "raise"
    if key not in known:
        known[key] = Ledger(*key)
    return known[key]


def ledgers_of(optimizer: Optimizer, raises: bool | None = None) -> list[Ledger]:
    """The ledgers of an optimizer that exist: all, or those that raise, or do not."""
    known = _ledgers[optimizer].values()
    return [ledger for ledger in known if raises in (None, ledger.raises)]


def kept(optimizer: Optimizer) -> Callable[[], None]:
    """Keeps what the ledgers of an optimizer hold; the result puts it back."""
    before = {
        id(ledger): (
            [v.numpy() for v in ledger.variables],
            ledger.fit,
            ledger.is_reported,
        )
        for ledger in ledgers_of(optimizer)
    }

    def put_back() -> None:
        for ledger in ledgers_of(optimizer):
            if id(ledger) not in before:
                ledger.clear()
                continue
            values, ledger.fit, ledger.is_reported = before[id(ledger)]
            for variable, value in zip(ledger.variables, values, strict=True):
                variable.assign(value)

    return put_back


def skipped_examples(optimizer: Optimizer) -> list[Skipped]:
    """The groups that were skipped in the last `fit`, in order of visit."""
    found = [ledger.entries() for ledger in ledgers_of(optimizer, raises=False)]
    return [entry for entries in found for entry in entries]


def reset_counts(optimizer: Optimizer) -> None:
    """Begins to count groups anew, as metrics do."""
    for ledger in ledgers_of(optimizer):
        ledger.in_epoch.assign(0)


def begin_fit(optimizer: Optimizer, fit: int) -> None:
    """Forgets the groups that an earlier `fit` has reported.

    Args:
        optimizer: an SGDPlus.
        fit: the number of the `fit` that begins, or `OUTSIDE`.
    """
    current = ledger_of(optimizer)
    for ledger in ledgers_of(optimizer):
        if ledger.is_reported:
            ledger.clear()
        ledger.fit = fit if ledger is current else OUTSIDE


def report_skips(optimizer: Optimizer, fit: Any) -> str | None:
    """The warning for the end of a `fit` (a `Run`), or None if nothing was skipped."""
    texts = []
    for ledger in ledgers_of(optimizer, raises=False):
        ledger.is_reported = True
        total = int(ledger.total.numpy())
        if total:
            entries = ledger.entries()
            place = rows_in_words(fit, entries[:_SHOWN])
            texts.append(_left_out(total, entries, place))
    return " ".join(texts) or None


def raise_if_ended(optimizer: Optimizer) -> None:
    """Raises FloatingPointError where `nonfinite="raise"` has ended a batch early."""
    for ledger in ledgers_of(optimizer, raises=True):
        if int(ledger.total.numpy()):
            entry = ledger.entries()[0]
            ledger.clear()
            place = rows_in_words(_fits.get(optimizer), [entry])
            raise FloatingPointError(_not_finite(entry, place))


def _not_finite(entry: Skipped, where: str = "") -> str:
    several = entry.replica is not None
    part = f"replica {entry.replica}'s part of " if several else ""
    place = f"{part}batch {entry.batch} of the epoch, which began after "
    kept = "before this batch" if several else "just before it"
    return (
        'Every loss and gradient must be finite under nonfinite="raise". Received: '
        f"{_cause(entry.cause)} at {_positions(entry.positions)} of {place}"
        f"{entry.iterations} updates (both from 0, as handed over). {where}Look there "
        f"for {_CAUSES}, or lower the learning_rate; "
        'nonfinite="skip" leaves such examples '
        f"out. The model holds the weights from {kept}, and can be trained on."
    )


def _left_out(total: int, entries: list[Skipped], where: str) -> str:
    shown = [f"{_positions(e.positions)} of batch {e.batch}" for e in entries[:_SHOWN]]
    more = ", and notes" if total > len(shown) else ""
    return (
        'Every loss and gradient should be finite. Received: nonfinite="skip" left out '
        f"{total} update(s): {_cause(entries[0].cause)} at {', '.join(shown)}{more}. "
        f"{where}Look there for {_CAUSES}; optimizer.skipped_examples() lists them."
    )


def _cause(cause: str) -> str:
    if cause == "loss":
        return "a loss that is not finite"
    return f"a gradient of {cause!r} that is not finite"


def _positions(positions: tuple[int, ...]) -> str:
    if len(positions) == 1:
        return f"position {positions[0]}"
    return f"positions {', '.join(str(i) for i in positions)}"
