"""The records of finished epochs: in memory, or in one `.npy` file per quantity."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_sgd_plus._callbacks.epoch_record import blank, blank_value

Arrays = dict[str, np.ndarray]


class EpochsInMemory:
    """Keeps the arrays of each epoch."""

    def __init__(self) -> None:
        self._epochs: list[Arrays] = []

    def __len__(self) -> int:
        return len(self._epochs)

    def add(self, arrays: Arrays, num_epochs: int) -> None:
        """Adds an epoch.

        Args:
            arrays: by name, (num_rows, ...).
            num_epochs: that the run is to have in the end.
        """
        del num_epochs
        self._epochs.append({name: array.copy() for name, array in arrays.items()})

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._epochs[0]) if self._epochs else []

    def array(self, name: str) -> np.ndarray:
        """(epochs, num_rows, ...); rows that an epoch lacks were not visited in it."""
        parts = [epoch[name] for epoch in self._epochs]
        num_rows = max(len(part) for part in parts)
        like = parts[0]
        shape = (len(parts), num_rows, *like.shape[1:])
        found = blank(name, shape, like.dtype)
        for row, part in zip(found, parts, strict=True):
            row[: len(part)] = part
        return found

    def state(self) -> Arrays:
        """Arrays from which `restore` makes the same epochs."""
        return {name: self.array(name) for name in self.names()}

    def restore(self, num_epochs: int, arrays: Arrays) -> None:
        """Takes epochs from `state` of another."""
        names = arrays.items()
        self._epochs = [{n: a[i].copy() for n, a in names} for i in range(num_epochs)]


class EpochsInFiles:
    """Writes each epoch to files, and keeps none.

    Args:
        path: a directory, made if it is missing.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._num_epochs = 0
        self._files: dict[str, np.memmap[Any, Any]] = {}

    def __len__(self) -> int:
        return self._num_epochs

    def __getstate__(self) -> dict[str, Any]:
        """A copy opens the files anew."""
        return {**vars(self), "_files": list(self._files)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the files of a copy."""
        vars(self).update(state)
        self.restore(self._num_epochs, dict.fromkeys(state["_files"]))

    def add(self, arrays: Arrays, num_epochs: int) -> None:
        """As for `EpochsInMemory`; the files get their size with the first epoch.

        Raises:
            ValueError: an epoch with a row beyond those of the first.
        """
        for name, array in arrays.items():
            file = self._files.get(name)
            if file is None or len(file) <= self._num_epochs:
                file = self._files[name] = self._opened(name, array, num_epochs)
            if len(array) > file.shape[1]:
                raise ValueError(
                    "With ExampleLog(path=...) the first epoch must visit the last row "
                    f"of the data, which gives the files their size. Received: row "
                    f"{len(array) - 1} in epoch {self._num_epochs}, and "
                    f"{file.shape[1]} rows before. Leave path out."
                )
            file[self._num_epochs, : len(array)] = array
            file.flush()
        self._num_epochs += 1

    def names(self) -> list[str]:
        """As for `EpochsInMemory`."""
        return list(self._files)

    def array(self, name: str) -> np.ndarray:
        """As for `EpochsInMemory`; a part of the file, read where it is looked at."""
        return self._files[name][: self._num_epochs]

    def state(self) -> Arrays:
        """The names alone: the values are in the files already."""
        return {name: np.zeros(0) for name in self._files}

    def restore(self, num_epochs: int, arrays: Iterable[str]) -> None:
        """Goes on after so many epochs of the files with these names."""
        self._num_epochs = num_epochs
        opened = np.lib.format.open_memmap
        self._files = {n: opened(self._file(n), mode="r+") for n in arrays}

    def _file(self, name: str) -> str:
        return os.path.join(self._path, f"{name}.npy")

    def _opened(self, name: str, like: np.ndarray, num_epochs: int) -> Any:
        # A file for all epochs of the run; those that are there already are kept.
        os.makedirs(self._path, exist_ok=True)
        file = self._file(name)
        if os.path.exists(file):  # arrays that a user has of it stay as they are
            os.remove(file)
        known = self._files.pop(name, None)
        before = None if known is None else np.array(known[: self._num_epochs])
        num_rows = len(like) if before is None else before.shape[1]
        size = max(num_epochs, self._num_epochs + 1)
        shape = (size, num_rows, *like.shape[1:])
        made = np.lib.format.open_memmap(file, "w+", dtype=like.dtype, shape=shape)
        made[...] = blank_value(name, like.dtype)
        if before is not None:
            made[: len(before)] = before
        return made
