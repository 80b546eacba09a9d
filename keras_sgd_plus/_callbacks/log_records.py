"""The records of an `ExampleLog`, by epoch and by row of the data.

Batches come as the loop has visited them. `Rows` finds which rows of the data their
examples are, an `EpochRecord` puts them there, and finished epochs are kept in memory
or in one `.npy` file per quantity. `LogRecords` leads a run through this, and is what
`ExampleLog` holds and `ExactResume` saves. Workers of `tf.distribute` have rows of
their own each, which can be exchanged and merged.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._fit.fits import Run
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Strategy
from keras_sgd_plus._report.bad_examples import KnownRows
from keras_sgd_plus._report.records import BatchRecord

UNVISITED = -1
PREDICTION = "prediction_{}"  # of one output of the model
Arrays = dict[str, np.ndarray]  # by the name of the quantity


def blank(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of rows that were not visited."""
    return np.full(shape, _blank_value(name, dtype), dtype)


def _blank_value(name: str, dtype: np.dtype) -> float | int:
    if name == "visited":
        return UNVISITED
    return float("nan") if dtype.kind == "f" else 0


class EpochRecord:
    """Arrays with one row per example; those not visited are NaN.

    Args:
        epoch: its number, as `fit` counts.
        num_examples: visited so far, by all workers.
        arrays: what is known of them, (num_rows, ...).
    """

    def __init__(
        self, epoch: int, num_examples: int = 0, arrays: Arrays | None = None
    ) -> None:
        self.epoch, self.num_examples = epoch, num_examples
        self._arrays = arrays or {}
        self._num_rows = max(map(len, self._arrays.values()), default=0)

    def put(self, rows: np.ndarray, batch: BatchRecord) -> None:
        """Adds a batch.

        Args:
            rows: (num_examples,) int64, in the order of visits.
            batch: its records.
        """
        num_rows = int(rows.max(initial=-1)) + 1
        outputs = {PREDICTION.format(i): a for i, a in enumerate(batch.outputs)}
        for name, new in {**batch.values, **outputs}.items():
            self._array(name, new, num_rows)[rows] = new
        self._num_rows = max(self._num_rows, num_rows)
        self.num_examples += batch.size

    def visited_before(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that have been visited in this epoch, or come twice."""
        known = self._arrays.get("visited", np.zeros(0, np.int64))
        again = rows[rows < len(known)]
        again = again[known[again] != UNVISITED]
        unique, counts = np.unique(rows, return_counts=True)
        return np.concatenate([again, unique[counts > 1]])

    def arrays(self) -> Arrays:
        """By name, (num_rows, ...); with rows for the examples of other workers."""
        size = max(self._num_rows, self.num_examples)
        return {n: self._array(n, a, size)[:size] for n, a in self._arrays.items()}

    def _array(self, name: str, like: np.ndarray, num_rows: int) -> np.ndarray:
        known = self._arrays.get(name)
        if known is None or len(known) < num_rows:
            # Twice as many, so that an epoch copies each row about once.
            size = max(num_rows, 2 * self._num_rows)
            made = blank(name, (size, *like.shape[1:]), like.dtype)
            if known is not None:
                made[: len(known)] = known
            self._arrays[name] = made
        return self._arrays[name]


class Epochs:
    """Finished epochs: one array per quantity, in memory or in a `.npy` file.

    Args:
        folder: for the files, made if it is missing; None: they are kept in memory.
        num_epochs: to go on with.
        state: what `state` gave after so many epochs.
    """

    def __init__(self, folder: str | None, num_epochs: int, state: Arrays) -> None:
        self._folder, self._num_epochs = folder, num_epochs
        # By name, (room for epochs, num_rows, ...).
        self._stacks: dict[str, Any] = state
        if folder is not None:
            opened = np.lib.format.open_memmap
            self._stacks = {n: opened(self._file(n), mode="r+") for n in state}

    def __len__(self) -> int:
        return self._num_epochs

    def __reduce__(self) -> tuple[object, ...]:
        """A copy opens files anew."""
        return type(self), (self._folder, self._num_epochs, self.state())

    def add(self, arrays: Arrays, num_epochs: int) -> None:
        """Adds an epoch; files get their size with the first.

        Args:
            arrays: by name, (num_rows, ...).
            num_epochs: that the run is to have in the end.

        Raises:
            ValueError: an epoch with a row beyond those of the files.
        """
        for name, array in arrays.items():
            stack = self._stacks.get(name)
            if (
                stack is None
                or len(stack) <= self._num_epochs
                or stack.shape[1] < len(array)
            ):
                stack = self._stacks[name] = self._grown(name, array, num_epochs)
            stack[self._num_epochs, : len(array)] = array
            if isinstance(stack, np.memmap):
                stack.flush()
        self._num_epochs += 1

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._stacks)

    def array(self, name: str) -> np.ndarray:
        """(epochs, num_rows, ...); rows that an epoch lacks were not visited in it.

        Of a file it is a part, read where it is looked at.
        """
        found = self._stacks[name][: self._num_epochs]
        return found.copy() if self._folder is None else found

    def state(self) -> Arrays:
        """Arrays to go on with; of files the names alone, for they have the values."""
        in_memory = self._folder is None
        return {n: self.array(n) if in_memory else np.zeros(0) for n in self._stacks}

    def _file(self, name: str) -> str:
        return os.path.join(self._folder or "", f"{name}.npy")

    def _grown(self, name: str, like: np.ndarray, num_epochs: int) -> np.ndarray:
        # Room for more epochs or rows; the epochs that are there already are kept.
        known = self._stacks.get(name, np.empty((0, *like.shape)))[: self._num_epochs]
        num_rows = max(known.shape[1], len(like))
        size = max(num_epochs, self._num_epochs + 1)
        if self._folder is None:
            size = min(size, 2 * self._num_epochs + 1)  # `fit` may be stopped early
            made = np.empty((size, num_rows, *like.shape[1:]), like.dtype)
        elif num_rows > known.shape[1]:
            raise ValueError(
                "With ExampleLog(path=...) the first epoch must visit the last row "
                f"of the data, which gives the files their size. Received: row "
                f"{len(like) - 1} in epoch {self._num_epochs}, and "
                f"{known.shape[1]} rows before. Leave path out."
            )
        else:
            os.makedirs(self._folder, exist_ok=True)
            file = self._file(name)
            if os.path.exists(file):  # arrays that a user has of it stay as they are
                os.remove(file)
            shape = (size, num_rows, *like.shape[1:])
            made = np.lib.format.open_memmap(file, "w+", dtype=like.dtype, shape=shape)
        made[...] = _blank_value(name, like.dtype)
        made[: len(known), : known.shape[1]] = known
        return made


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as bytes."""
    file = io.BytesIO()
    # NumPy before 2.1 would store `allow_pickle=False` as one more array.
    named: dict[str, Any] = {**arrays}
    np.savez(file, **named)
    return file.getvalue()


def unpacked(data: bytes) -> Arrays:
    """The arrays that `packed` took."""
    with np.load(io.BytesIO(data)) as found:
        return {name: found[name] for name in found.files}


_ROWS = "rows"  # beside the records of an epoch


def visited_part(arrays: Arrays) -> bytes:
    """The rows of an epoch that were visited, and which they are.

    Args:
        arrays: by name, (num_rows, ...).
    """
    rows = np.nonzero(arrays["visited"] != UNVISITED)[0]
    return packed({_ROWS: rows, **{name: a[rows] for name, a in arrays.items()}})


def merged(parts: Sequence[Arrays]) -> Arrays:
    """An epoch from the visited rows of each worker.

    Raises:
        ValueError: a row that two workers have visited.
    """
    rows = np.concatenate([part[_ROWS] for part in parts])
    unique, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            "Each row must be visited by one worker. Received: row "
            f"{int(unique[counts > 1][0])}, which two workers have visited. Let them "
            "share the data: arrays, or a tf.data.Dataset whose options have "
            "experimental_distribute.auto_shard_policy = "
            "tf.data.experimental.AutoShardPolicy.DATA."
        )
    found = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        shape = (int(rows.max(initial=-1)) + 1, *values.shape[1:])
        found[name] = blank(name, shape, values.dtype)
        found[name][rows] = values
    del found[_ROWS]
    return found


_LARGEST = 2**31  # ids are numbers of rows, and arrays have room for all of them
# Bits of the integers that a type of numbers has without gaps.
_EXACT_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


class Rows:
    """Finds rows for batches of one `fit`.

    Args:
        run: the `fit` that begins, or None outside of one.
        by_id: whether the batches tell rows themselves.
        strategy: of `tf.distribute`, with which the model trains.

    Raises:
        ValueError: the data come in an order that is not known, or workers get parts
            that are not known.
    """

    def __init__(self, run: Run | None, by_id: bool, strategy: Strategy) -> None:
        self._by_id = by_id
        self._number = None if run is None else run.number
        if by_id:
            return
        data = None if run is None else run.data
        if data is None or not _is_known(data):
            raise ValueError(_unknown(data))
        self._dataset = data.dataset
        if replicas.has_workers(strategy):
            _check_parts(data.dataset, replicas.num_replicas_per_worker(strategy))

    def has(self, batch: BatchRecord, epoch: EpochRecord) -> bool:
        """Whether a batch is one of that epoch, and not one that a callback brought."""
        place = batch.fit, batch.epoch
        return self._number is None or place == (self._number, epoch.epoch)

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
        if not isinstance(self._dataset, KnownRows):
            return epoch.num_examples + batch.positions
        known = np.asarray(self._dataset.rows_of(batch.number), np.int64)
        if len(known) != batch.size:
            raise ValueError(
                "ExampleLog must get the batches whose rows the data tell. Received: "
                f"{batch.size} examples in batch {batch.number}, for "
                f"which rows_of gives {len(known)} rows. Override rows_of with "
                "__getitem__, or use ExampleLog(id=...)."
            )
        return known[batch.positions]


def _is_known(data: keras_trainer.Data) -> bool:
    if data.shuffles or data.steps_per_epoch:
        return False
    if isinstance(data.dataset, tf.data.Dataset):
        return not keras_trainer.shuffles_differently(data.dataset)
    if isinstance(data.dataset, keras.utils.PyDataset):
        return isinstance(data.dataset, KnownRows) or not _changes(data.dataset)
    return data.array_batch_size is not None


def _changes(dataset: keras.utils.PyDataset) -> bool:
    # Whether it may hand over its batches in another order in each epoch.
    base, kind = keras.utils.PyDataset, type(dataset)
    hooks = ("on_epoch_begin", "on_epoch_end")
    return any(getattr(kind, h) is not getattr(base, h) for h in hooks)


def _unknown(data: keras_trainer.Data | None) -> str:
    if data is None:
        received = "no fit that runs"
    elif data.shuffles:
        received = "fit(shuffle=True), which draws the order anew"
    elif data.steps_per_epoch:
        received = f"steps_per_epoch={data.steps_per_epoch}"
    else:
        kind = "other data" if data.dataset is None else type(data.dataset).__name__
        received = f"{kind} that may come in another order in each epoch"
    return (
        "ExampleLog must know which row of the data each example is. Received: "
        f"{received}. Use fit(shuffle=False) with arrays, with SeededArrays(x, y), "
        "which has a fresh order in each epoch, or with a dataset that does not "
        'shuffle; or hand rows along, ExampleLog(id="row") with x={..., "row": '
        "np.arange(num_examples)}, whatever shuffles them."
    )


def _check_parts(dataset: object, num_replicas: int) -> None:
    # The first worker must get the first part of each batch, and so on. For arrays and
    # a `PyDataset` TensorFlow shares them so.
    received = ""
    if num_replicas > 1:
        received = f"{num_replicas} replicas on each worker"
    elif isinstance(dataset, tf.data.Dataset):
        policy = dataset.options().experimental_distribute.auto_shard_policy
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


_PART, _DONE = "part/", "done/"  # of names in a save


class LogRecords:
    """Puts batches into epochs, by row; can be saved between two batches.

    Args:
        folder: gives a directory for finished epochs; None: they are kept in memory.
        take: lets all batches so far be put, before a save.
    """

    def __init__(
        self, folder: Callable[[], str | None], take: Callable[[], None]
    ) -> None:
        self._folder, self._take = folder, take
        self._num_epochs = 1  # that the run is to have in the end
        self._is_restored = False  # for a run of which no epoch has begun
        self._empty()

    def begin(self, num_epochs: int) -> None:
        """Begins a run anew, unless it was restored just before."""
        if not self._is_restored:
            self._empty()
        self._num_epochs = num_epochs

    def begin_epoch(self, epoch: int) -> None:
        """Begins an epoch, or goes on with it where it was restored in its middle."""
        self._is_restored = False
        if self._epoch is not None and self._epoch.epoch != epoch:
            self.end_epoch()  # it was saved before anybody said that it had ended
        if self._epoch is None:
            self._epoch = EpochRecord(epoch)

    def put(self, rows: Rows, batch: BatchRecord) -> None:
        """Adds a batch to the epoch, if it is one of it."""
        if self._epoch is not None and rows.has(batch, self._epoch):
            self._epoch.put(rows.of(batch, self._epoch), batch)

    def end_epoch(self) -> None:
        """Keeps the epoch."""
        if self._epoch is not None and self._epoch.num_examples:
            self._epochs.add(self._epoch.arrays(), self._num_epochs)
        self._epoch = None

    def end(self) -> None:
        """Ends a run; forgets an epoch that has not ended."""
        if self._is_restored:  # a finished run: its last epoch may be as it was saved
            self.end_epoch()
        self._is_restored = False
        self._epoch = None

    def names(self) -> list[str]:
        """Names of the arrays."""
        return self._epochs.names()

    def array(self, name: str) -> np.ndarray:
        """(epochs, num_rows, ...)."""
        if not len(self._epochs):
            return np.zeros((0, 0), np.int64 if name == "visited" else np.float32)
        return self._epochs.array(name)

    def gather(self, exchange: Callable[[bytes], list[bytes]]) -> None:
        """Adds the rows of other workers to the finished epochs.

        Args:
            exchange: gives what each worker hands over.
        """
        before, found = self._epochs, Epochs(self._folder(), 0, {})
        stacks = {name: before.array(name) for name in before.names()}
        for i in range(len(before)):
            arrays = {name: stack[i] for name, stack in stacks.items()}
            if i >= self._num_gathered:
                arrays = merged([unpacked(b) for b in exchange(visited_part(arrays))])
            found.add(arrays, self._num_epochs)
        self._epochs, self._num_gathered = found, len(found)

    def saved(self) -> bytes:
        """Everything, for `restore`."""
        self._take()
        # The last but one is not used any more.
        counts = [len(self._epochs), self._num_gathered, -1, 0, 0]
        arrays = {f"{_DONE}{n}": a for n, a in self._epochs.state().items()}
        if self._epoch is not None:
            counts[2], counts[4] = self._epoch.epoch, self._epoch.num_examples
            arrays |= {f"{_PART}{n}": a for n, a in self._epoch.arrays().items()}
        return packed({**arrays, "counts": np.array(counts)})

    def restore(self, saved: bytes) -> None:
        """Goes on where `saved` was called, in the run that is about to begin."""
        arrays = unpacked(saved)
        done, part = (
            {n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)}
            for p in (_DONE, _PART)
        )
        num_epochs, gathered, epoch, _, examples = arrays["counts"].tolist()
        self._epochs = Epochs(self._folder(), num_epochs, done)
        self._num_gathered = gathered
        self._epoch = EpochRecord(epoch, examples, part) if epoch >= 0 else None
        self._is_restored = True

    def _empty(self) -> None:
        self._epochs = Epochs(self._folder(), 0, {})
        self._num_gathered = 0  # epochs that have the rows of all workers
        self._epoch: EpochRecord | None = None
