"""Where in the data of `fit` an example stands that was not finite.

The loop knows a position in a batch, as it was handed over. Whether that leads to a row
depends on who shuffled: `fit`, a `tf.data.Dataset`, or data that know their order.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus._nonfinite.ledger import Skipped
from keras_sgd_plus._private import keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Optimizer

# Optimizer -> raw counts of updates at which the epochs of its `fit` began.
_epochs: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()


class KnownRows:
    """Base of data that know which rows each of their batches holds."""

    def rows_of(self, batch: int, epochs_ago: int = 0) -> Sequence[int]:
        """The rows of a batch, in its order, of this epoch or an earlier one."""
        raise NotImplementedError


def begin_epoch(optimizer: Optimizer, is_first: bool) -> None:
    """Notes that an epoch of `fit` begins.

    Args:
        optimizer: an SGDPlus that skips examples, or raises.
        is_first: whether it is the first of this `fit`.
    """
    if is_first:
        _epochs[optimizer] = []
    count = int(keras_optimizer.raw_iterations(optimizer).numpy())
    _epochs.setdefault(optimizer, []).append(count)


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
    found = [_rows(fit, entry, _epochs.get(optimizer, [])) for entry in entries]
    rows = [row for part in found if part is not None for row in part]
    if rows and None not in found:
        listed = ", ".join(str(row) for row in rows)
        return f"In the data: row{'s' if len(rows) > 1 else ''} {listed}. "
    return _advice(fit, entries[0].batch)


def _rows(
    fit: keras_trainer.Fit, entry: Skipped, epochs: Sequence[int]
) -> list[int] | None:
    number = bisect.bisect_right(epochs, entry.iterations) - 1
    if fit.shuffles or fit.steps_per_epoch or number < 0:
        return None
    if isinstance(fit.dataset, KnownRows):
        rows = fit.dataset.rows_of(entry.batch, len(epochs) - 1 - number)
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
