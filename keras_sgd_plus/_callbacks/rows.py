"""Which rows of the data of `fit` the examples of a batch are."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._callbacks.epoch_record import EpochRecord
from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._nonfinite import KnownRows
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Strategy
from keras_sgd_plus._records import BatchRecord

_LARGEST = 2**31  # ids are numbers of rows, and arrays have room for all of them
# Bits of the integers that a type of numbers has without gaps.
_EXACT_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


class Rows:
    """Finds rows for batches of one `fit`.

    Args:
        fit: the running `fit`, or None where it is not found.
        by_id: whether the batches tell rows themselves.
        current: the `tf.distribute` strategy of the model.
        number: of the `fit`, as batches tell it; None where it is not found.

    Raises:
        ValueError: the data come in an order that is not known, or workers get parts
            that are not known.
    """

    def __init__(
        self,
        fit: keras_trainer.Fit | None,
        by_id: bool,
        current: Strategy,
        number: int | None,
    ) -> None:
        self._by_id, self._fit = by_id, number
        self._data: Any = None if fit is None else fit.dataset
        if not by_id and (fit is None or not _is_known(fit)):
            raise ValueError(_unknown(fit))
        if not by_id and strategy.has_workers(current):
            _check_parts(self._data, strategy.num_replicas_per_worker(current))

    def has(self, batch: BatchRecord, epoch: EpochRecord) -> bool:
        """Whether a batch is one of that epoch, and not one that a callback brought."""
        if self._fit is None:
            return True
        return (batch.fit, batch.epoch) == (self._fit, epoch.epoch)

    def of(self, batch: BatchRecord, epoch: EpochRecord) -> np.ndarray:
        """(num_examples,) int64: the rows of a batch, in the order of visits.

        Args:
            batch: its records.
            epoch: the records of the epoch before it.

        Raises:
            ValueError: an id that is no row, or was visited before in this epoch; data
                that hand over other batches than they know of.
        """
        if self._by_id:
            return _checked_ids(batch.ids, epoch)
        if not isinstance(self._data, KnownRows):
            return epoch.num_examples + batch.positions
        known = np.asarray(self._data.rows_of(batch.number), np.int64)
        if len(known) != batch.size:
            raise ValueError(
                "ExampleLog must get the batches whose rows the data tell. Received: "
                f"{batch.size} examples in batch {batch.number}, for "
                f"which rows_of gives {len(known)} rows. Override rows_of with "
                "__getitem__, or use ExampleLog(id=...)."
            )
        return known[batch.positions]


def _is_known(fit: keras_trainer.Fit) -> bool:
    if fit.shuffles or fit.steps_per_epoch:
        return False
    if isinstance(fit.dataset, tf.data.Dataset):
        return not keras_trainer.shuffles_differently(fit.dataset)
    if isinstance(fit.dataset, keras.utils.PyDataset):
        return isinstance(fit.dataset, KnownRows) or not _changes(fit.dataset)
    return fit.array_batch_size is not None


def _changes(data: keras.utils.PyDataset) -> bool:
    # Whether it may hand over its batches in another order in each epoch.
    base, kind = keras.utils.PyDataset, type(data)
    hooks = ("on_epoch_begin", "on_epoch_end")
    return any(getattr(kind, h) is not getattr(base, h) for h in hooks)


def _unknown(fit: keras_trainer.Fit | None) -> str:
    if fit is None:
        received = "no fit that runs"
    elif fit.shuffles:
        received = "fit(shuffle=True), which draws the order anew"
    elif fit.steps_per_epoch:
        received = f"steps_per_epoch={fit.steps_per_epoch}"
    else:
        kind = "other data" if fit.dataset is None else type(fit.dataset).__name__
        received = f"{kind} that may come in another order in each epoch"
    return (
        "ExampleLog must know which row of the data each example is. Received: "
        f"{received}. Use fit(shuffle=False) with arrays, with SeededArrays(x, y), "
        "which has a fresh order in each epoch, or with a dataset that does not "
        'shuffle; or hand rows along, ExampleLog(id="row") with x={..., "row": '
        "np.arange(num_examples)}, whatever shuffles them."
    )


def _check_parts(data: Any, num_replicas: int) -> None:
    # The first worker must get the first part of each batch, and so on. For arrays and
    # a `PyDataset` TensorFlow shares them so.
    received = ""
    if num_replicas > 1:
        received = f"{num_replicas} replicas on each worker"
    elif isinstance(data, tf.data.Dataset):
        policy = data.options().experimental_distribute.auto_shard_policy
        policy = tf.data.experimental.AutoShardPolicy(policy)
        if policy != tf.data.experimental.AutoShardPolicy.DATA:
            received = f"a tf.data.Dataset with AutoShardPolicy.{policy.name}"
    if received:
        raise ValueError(
            "On several workers ExampleLog must know who gets which part of a batch. "
            f"Received: {received}. Use one replica per worker, and arrays, "
            "SeededArrays, or a dataset whose options have experimental_distribute."
            "auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA; or hand "
            "rows along, ExampleLog(id=...)."
        )


def _checked_ids(ids: np.ndarray, epoch: EpochRecord) -> np.ndarray:
    # (num_examples,) int64. A wrong id is named as it was given.
    is_float = ids.dtype.name in _EXACT_BITS
    limit = min(2 ** _EXACT_BITS[ids.dtype.name], _LARGEST) if is_float else _LARGEST
    is_row = (ids >= 0) & (ids < limit)
    if is_float:
        is_row &= ids == np.floor(ids)
    wrong = ids[~is_row]
    rows = np.where(is_row, ids, 0).astype(np.int64)
    received = ""
    if wrong.size:
        received = f"{wrong[0]}, which is no row"
        if is_float and wrong[0] >= limit and limit < _LARGEST:
            received = (
                f"{wrong[0]:.0f}, too large to be exact in a column of {ids.dtype.name}"
            )
    else:
        again = epoch.visited_before(rows)
        if again.size:
            received = f"row {int(again[0])} twice in epoch {epoch.epoch}"
    if received:
        raise ValueError(
            "The ids of ExampleLog must be rows of the data, from 0, each at most once "
            f"in an epoch. Received: {received}. Use np.arange(num_examples), and end "
            "an epoch (steps_per_epoch) where the data begin again."
        )
    return rows
