"""The records of one batch, as Python gets them: from the numbers that a step wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from keras_sgd_plus._records.tables import Wanted

# Numbers of a batch before its positions: which call of its step, the updates before
# it, its examples, the size of its groups, and for replicas the examples of the whole
# batch, and of those that come before this part of it.
HEADER = 6


class BatchRecord(NamedTuple):
    """The records of one batch; arrays are in the order of visits.

    Several replicas visit their parts of it at the same time. Their visits come here
    one replica after the other, those of this process alone.

    Attributes:
        positions: (num_examples,) int64, each example's place in the batch.
        values: by name, (num_examples, ...). "visited" is the number of updates that
            were made before the example's own.
        outputs: (num_examples, ...) each, of the model; none if they are not recorded.
        ids: (num_examples,) int64; empty without.
        size: the examples of the batch, those of other processes too.
    """

    positions: np.ndarray
    values: dict[str, np.ndarray]
    outputs: list[np.ndarray]
    ids: np.ndarray
    size: int


def batches(
    vector: np.ndarray, outputs: list[np.ndarray], wanted: Wanted, has_several: bool
) -> Iterator[BatchRecord]:
    """The batches that a step has written.

    Args:
        vector: float64, for each batch the header, positions, numbers and ids.
        outputs: (num_examples, ...) each, of all batches.
        wanted: the quantities.
        has_several: whether there may be several batches; what follows the first is
            padding otherwise.
    """
    columns, place, first = wanted.columns, 0, 0

    def part(size: int) -> np.ndarray:
        nonlocal place
        place += size
        return vector[place - size : place]

    while place < vector.size:
        header = (int(number) for number in part(HEADER))
        _, iterations, count, size, of_all, before = header
        positions = part(count).astype(np.int64)
        groups = -(-count // size)
        numbers = part(groups * len(columns)).reshape(groups, len(columns))
        numbers = numbers.T.astype(np.float32)
        visited = np.arange(iterations, iterations + groups)
        if size > 1:
            group = np.arange(count) // size
            numbers, visited = numbers[:, group], visited[group]
        values = {"visited": visited, **dict(zip(columns, numbers, strict=True))}
        has_ids = wanted.id is not None
        ids = part(count if has_ids else 0).astype(np.int64)
        ids = ids[positions] if has_ids else ids
        own = slice(first, first + count)
        first += count
        shown = [each[own] for each in outputs]
        yield BatchRecord(before + positions, values, shown, ids, of_all)
        if not has_several:
            return


def together(replicas: Sequence[BatchRecord]) -> BatchRecord:
    """The record of a batch from those of its parts."""

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    columns = {n: [each.values[n] for each in replicas] for n in replicas[0].values}
    outputs = zip(*(each.outputs for each in replicas), strict=True)
    return BatchRecord(
        joined([each.positions for each in replicas]),
        {name: joined(parts) for name, parts in columns.items()},
        [joined(parts) for parts in outputs],
        joined([each.ids for each in replicas]),
        replicas[0].size,
    )
