"""The records of one epoch, in the order of the data set."""

from __future__ import annotations

import numpy as np

from keras_sgd_plus._records import BatchRecord

UNVISITED = -1
PREDICTION = "prediction_{}"  # of one output of the model


class EpochRecord:
    """Arrays with one row per example; those not visited are NaN.

    Args:
        epoch: its number, as `fit` counts.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.num_batches = 0
        self.num_examples = 0  # visited so far, by all workers
        self._num_rows = 0
        self._arrays: dict[str, np.ndarray] = {}

    def put(self, rows: np.ndarray, batch: BatchRecord) -> None:
        """Adds a batch.

        Args:
            rows: (num_examples,) int64, in the order of visits.
            batch: its records.
        """
        num_rows = int(rows.max(initial=-1)) + 1
        for name, new in batch.values.items():
            self._array(name, new, num_rows)[rows] = new
        for name, new in named_outputs(batch.outputs).items():
            self._array(name, new, num_rows)[rows] = new
        self._num_rows = max(self._num_rows, num_rows)
        self.num_batches += 1
        self.num_examples += batch.size

    def visited_before(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that have been visited in this epoch, or come twice."""
        known = self._arrays.get("visited", np.zeros(0, np.int64))
        again = rows[rows < len(known)]
        again = again[known[again] != UNVISITED]
        unique, counts = np.unique(rows, return_counts=True)
        return np.concatenate([again, unique[counts > 1]])

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, (num_rows, ...); with rows for the examples of other workers."""
        num_rows = max(self._num_rows, self.num_examples)
        arrays = {n: self._array(n, a, num_rows) for n, a in self._arrays.items()}
        return {name: array[:num_rows] for name, array in arrays.items()}

    def restore(
        self, batches: int, examples: int, arrays: dict[str, np.ndarray]
    ) -> None:
        """Takes the state of another epoch's record."""
        self.num_batches, self.num_examples = batches, examples
        self._arrays = {name: array.copy() for name, array in arrays.items()}
        self._num_rows = len(next(iter(arrays.values()))) if arrays else 0

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


def blank(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of rows that were not visited."""
    return np.full(shape, blank_value(name, dtype), dtype)


def blank_value(name: str, dtype: np.dtype) -> float | int:
    """What stands for an example that was not visited."""
    if name == "visited":
        return UNVISITED
    return float("nan") if dtype.kind == "f" else 0


def named_outputs(outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a model by the names of their arrays."""
    names = [PREDICTION.format(i) for i in range(len(outputs))]
    return dict(zip(names, outputs, strict=True))
