"""The records of one batch, as Python gets them: from the numbers that a step wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_sgd_plus._records.tables import Wanted

# Numbers of a batch: the updates before it, its examples, the size of its groups; for
# replicas the examples of the whole batch, and of those before this part of it; the
# number of `fit`, the epoch, and the number of the batch in it.
HEADER = 8


class BatchRecord(NamedTuple):
    """The records of one batch; arrays are in the order of visits.

    Several replicas visit their parts of it at the same time. Their visits come here
    one replica after the other, those of this process alone.

    Attributes:
        positions: (num_examples,) int64, each example's place in the batch.
        values: by name, (num_examples, ...). "visited" is the number of updates that
            were made before the example's own.
        outputs: (num_examples, ...) each, of the model; none if they are not recorded.
        ids: (num_examples,) numbers, as they were given; empty without.
        size: the examples of the batch, those of other processes too.
        fit: the number of the `fit` that the batch is one of; -1 for any other batch.
        epoch: of that `fit`.
        number: of the batch in that epoch.
    """

    positions: np.ndarray
    values: dict[str, np.ndarray]
    outputs: list[np.ndarray]
    ids: np.ndarray
    size: int
    fit: int
    epoch: int
    number: int


def record_of(
    parts: Sequence[np.ndarray], wanted: Wanted, in_order: bool
) -> BatchRecord:
    """The record of a batch, or of a replica's part of one.

    Args:
        parts: the header; numbers (groups, columns); positions, unless they are in
            order; ids, if they are wanted; outputs. All but the header may be padded.
        wanted: the quantities.
        in_order: whether the examples were visited as they were handed over.
    """
    following = iter(parts)
    iterations, count, size, of_all, before, *place = next(following).tolist()
    numbers, groups = next(following), -(-count // size)
    positions = np.arange(count) if in_order else next(following)[:count]
    ids = np.zeros(0, np.int64)
    if wanted.id is not None:
        ids = next(following)[positions]
    columns = [numbers[:groups, i] for i in range(numbers.shape[1])]
    visited = np.arange(iterations, iterations + groups)
    if size > 1:
        group = np.arange(count) // size
        columns, visited = [column[group] for column in columns], visited[group]
    values = {"visited": visited, **dict(zip(wanted.columns, columns, strict=True))}
    shown = [output[:count] for output in following]
    return BatchRecord(before + positions, values, shown, ids, of_all, *place)


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
        *replicas[0][-4:],
    )
