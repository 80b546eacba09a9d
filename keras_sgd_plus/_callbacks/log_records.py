"""The records of one run of `fit`: finished epochs, and the one that runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_sgd_plus._callbacks.epoch_record import EpochRecord
from keras_sgd_plus._callbacks.epochs import EpochsInFiles, EpochsInMemory
from keras_sgd_plus._callbacks.packing import merged, packed, unpacked, visited_part
from keras_sgd_plus._callbacks.rows import Rows
from keras_sgd_plus._records import BatchRecord

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
        before, found = self._epochs, self._no_epochs()
        for i in range(len(before)):
            arrays = {name: before.array(name)[i] for name in before.names()}
            if i >= self._num_gathered:
                arrays = merged([unpacked(b) for b in exchange(visited_part(arrays))])
            found.add(arrays, self._num_epochs)
        self._epochs, self._num_gathered = found, len(found)

    def saved(self) -> bytes:
        """Everything, for `restore`."""
        self._take()
        counts = [len(self._epochs), self._num_gathered, -1, 0, 0]
        part: dict[str, np.ndarray] = {}
        if self._epoch is not None:
            part, epoch = self._epoch.arrays(), self._epoch
            counts[2:] = [epoch.epoch, epoch.num_batches, epoch.num_examples]
        arrays = {f"{_PART}{name}": array for name, array in part.items()}
        arrays |= {f"{_DONE}{n}": a for n, a in self._epochs.state().items()}
        arrays["counts"] = np.array(counts)
        return packed(arrays)

    def restore(self, saved: bytes) -> None:
        """Goes on where `saved` was called, in the run that is about to begin."""
        arrays = unpacked(saved)
        counts = arrays.pop("counts").tolist()
        num_epochs, gathered, epoch, batches, examples = counts
        done, part = _with_prefix(_DONE, arrays), _with_prefix(_PART, arrays)
        self._empty()
        self._epochs.restore(num_epochs, done)
        self._num_gathered = gathered
        if epoch >= 0:
            self._epoch = EpochRecord(epoch)
            self._epoch.restore(batches, examples, part)
        self._is_restored = True

    def _empty(self) -> None:
        self._epochs = self._no_epochs()
        self._num_gathered = 0  # epochs that have the rows of all workers
        self._epoch: EpochRecord | None = None

    def _no_epochs(self) -> EpochsInMemory | EpochsInFiles:
        folder = self._folder()
        return EpochsInMemory() if folder is None else EpochsInFiles(folder)


def _with_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    size = len(prefix)
    return {n[size:]: a for n, a in arrays.items() if n.startswith(prefix)}
