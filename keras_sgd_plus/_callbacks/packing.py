"""Arrays as bytes, for saves and other workers; the rows of several workers as one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sgd_plus._callbacks.epoch_record import UNVISITED, blank

Arrays = dict[str, np.ndarray]
_ROWS = "rows"  # beside the records of an epoch


def packed(arrays: Arrays) -> bytes:
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
