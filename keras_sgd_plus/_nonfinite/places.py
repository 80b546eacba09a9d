"""Where in the data of `fit` a batch stands, and an example that was not finite.

The loop knows a position in a batch, as it was handed over. Which batch of which epoch
that is only `fit` knows: a callback may train on batches of its own in between. So the
train function says it before each call that is one of `fit`, in a variable that
compiled steps read. Whether a position leads to a row then depends on who shuffled:
`fit`, a `tf.data.Dataset`, or data that know their order.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._nonfinite.ledger import OUTSIDE, Skipped
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer

# Weak, and not attributes of the optimizer, which Keras's saver would walk.
# Optimizer -> (3,) int64: the number of a `fit`, its epoch, and the batch that comes
# next. Outside the calls of `fit` the first two are `OUTSIDE`, and batches count from
# the last reset of metrics.
_places: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# Optimizer -> the last epoch of `fit`.
_epochs: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def variable_of(optimizer: Optimizer) -> Any:
    """The variable with the place of the next batch, (3,) int64."""
    if optimizer not in _places:
        _places[optimizer] = private_tensorflow.variable((3,))
        reset(optimizer)
    return _places[optimizer]


def reset(optimizer: Optimizer) -> None:
    """Begins to count batches anew that are none of `fit`."""
    if optimizer in _places:
        _places[optimizer].assign([OUTSIDE, OUTSIDE, 0])


@contextlib.contextmanager
def at(optimizer: Optimizer, place: tuple[int, int, int]) -> Iterator[None]:
    """Says that the call of a train function that follows is one of `fit`.

    Args:
        optimizer: the SGDPlus.
        place: the number of the `fit`, the epoch and the first batch, both from 0.
    """
    _epochs[optimizer] = place[1]
    variable_of(optimizer).assign(place)
    try:
        yield
    finally:
        reset(optimizer)


class KnownRows:
    """Base of data that know which rows each of their batches holds."""

    def rows_of(self, batch: int, epochs_ago: int = 0) -> Sequence[int]:
        """The rows of a batch, in its order, of this epoch or an earlier one."""
        raise NotImplementedError


def described(optimizer: Optimizer, entries: Sequence[Skipped]) -> str:
    """A sentence that names the rows, or says how to get them; "" where neither is so.

    Called while `fit` runs.

    Args:
        optimizer: the SGDPlus.
        entries: the groups that a message names, one or more.
    """
    fit = keras_trainer.fit_in_progress()
    if fit is None or any(entry.replica is not None for entry in entries):
        return ""
    if any(entry.epoch is None for entry in entries):
        return ""  # of a batch that a callback has brought
    found = [_rows(fit, entry, _epochs[optimizer]) for entry in entries]
    rows = [row for part in found if part is not None for row in part]
    if rows and None not in found:
        listed = ", ".join(str(row) for row in rows)
        return f"In the data: row{'s' if len(rows) > 1 else ''} {listed}. "
    return _advice(fit, entries[0].batch)


def _rows(fit: keras_trainer.Fit, entry: Skipped, epoch: int) -> list[int] | None:
    if fit.shuffles or fit.steps_per_epoch or entry.epoch is None:
        return None
    if isinstance(fit.dataset, KnownRows):
        rows = fit.dataset.rows_of(entry.batch, epoch - entry.epoch)
        if max(entry.positions) >= len(rows):  # a subclass hands over other batches
            return None
        return [int(rows[i]) for i in entry.positions]
    if fit.array_batch_size is not None:
        return [entry.batch * fit.array_batch_size + i for i in entry.positions]
    return None


def _advice(fit: keras_trainer.Fit, batch: int) -> str:
    if fit.shuffles and isinstance(fit.dataset, KnownRows):
        return (
            "fit(shuffle=True) had shuffled the batches: with fit(shuffle=False) this "
            "message names the row. "
        )
    if fit.shuffles and fit.array_batch_size is not None:
        return (
            "fit(shuffle=True) had shuffled the arrays, so a position is no row of x: "
            "with fit(shuffle=False), or with SeededArrays(x, y) and shuffle=False, "
            "this message names the row. "
        )
    if not isinstance(fit.dataset, tf.data.Dataset) or fit.steps_per_epoch:
        return ""
    if keras_trainer.shuffles_differently(fit.dataset):
        return (
            "The dataset is shuffled anew in each pass, so a position is no row of the "
            "data: use shuffle(..., seed=1, reshuffle_each_iteration=False), and "
            f"next(iter(dataset.skip({batch}))) is that batch, where an id among the "
            "inputs tells the row. "
        )
    return f"next(iter(dataset.skip({batch}))) is that batch. "
