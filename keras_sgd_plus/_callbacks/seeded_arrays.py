"""SeededArrays: arrays in an order that can be repeated, epoch by epoch.

Its data may be structures of arrays, with lists of numbers in their places.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_sgd_plus._loop import examples
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private.types import Structure
from keras_sgd_plus._report.bad_examples import KnownRows

_SCALARS = (numbers.Number, str, bytes, np.generic)


def arrays_of(name: str, part: Structure) -> Structure:
    """The structure of a part of the data, with a NumPy array in each place.

    Args:
        name: of the part, for the message.
        part: arrays, tensors or lists of numbers, in dicts, lists and tuples; None
            entries stay.

    Raises:
        ValueError: a list of rows of several lengths.
    """

    def array_at(place: object) -> np.ndarray | None:
        # None lets `traverse` look inside a structure, and keeps an entry that is None.
        is_array = _is_list_of_numbers(place) or not keras.tree.is_nested(place)
        return np.asarray(place) if is_array and place is not None else None

    try:
        return keras.tree.traverse(array_at, part)
    except ValueError:  # of NumPy
        raise ValueError(
            f"The rows of a list must have one shape. Received: {name} with rows of "
            "several. Pad the rows to one length, or pass several inputs as a list of "
            "arrays."
        ) from None


def _is_list_of_numbers(place: object) -> bool:
    if not isinstance(place, (list, tuple)):
        return False
    return all(isinstance(v, _SCALARS) or _is_list_of_numbers(v) for v in place)


class SeededArrays(keras.utils.PyDataset, KnownRows):
    """Hands arrays to `fit` in a fresh order each epoch that depends on a seed alone.

    Use it with `ExactResume`, or wherever a run has to be repeated from the middle:
    `fit(shuffle=True)` draws the order of arrays from a generator whose state nothing
    saves. Plain arrays with `fit(shuffle=False)` will do if the order inside batches
    (`SGDPlus(order="reshuffle")`) is enough.

    Args:
        x: Array or structure of arrays of shape `(num_examples, ...)`. A list of
            numbers, or of lists of numbers, is one array; a list of arrays is a
            structure.
        y: The same, or None. Defaults to `None`.
        sample_weight: The same, or None. Defaults to `None`.
        batch_size: Int >= 1, in examples. It does not change the algorithm of an
            `SGDPlus`, only the examples of one compiled call. Defaults to `1024`.
        seed: Int from 0 to 2**63 - 1. The order of epoch `e` is NumPy's permutation
            from a generator seeded by `(seed, e)`. Defaults to `0`.

    Raises:
        ValueError: `x`, `y` and `sample_weight` of unequal lengths, or without an
            array, or a list of rows of several lengths; `batch_size` or `seed` out of
            range.
        TypeError: `batch_size` or `seed` is not an int. None is no `seed`: a derived
            one would be another in the next process.

    Example:

    ```python
    import numpy as np
    from keras_sgd_plus import SeededArrays

    x = np.arange(10.0)[:, None]
    data = SeededArrays(x, 2 * x, batch_size=4, seed=1)
    print(len(data), data[0][0].shape)  # 3 (4, 1)
    ```

    Notes:
        - Pass `shuffle=False` to `fit`, which would else shuffle the batches, too.
        - `SGDPlus(nonfinite="raise")` and `"skip"` name the row of a bad example.
        - Epochs are counted from the object's creation, and by `ExactResume` as `fit`
          counts them.
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    def __init__(
        self,
        x: Structure,
        y: Structure = None,
        sample_weight: Structure = None,
        *,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive("batch_size", batch_size)
        self.batch_size, self.seed = batch_size, _checked_seed(seed)
        named = {"x": x, "y": y, "sample_weight": sample_weight}
        parts = [arrays_of(name, part) for name, part in named.items()]
        self.num_examples = num_examples_of(parts)
        while len(parts) > 1 and parts[-1] is None:
            parts.pop()
        self._parts = tuple(parts)
        self._order = self._order_of(0)
        self._epoch = self.next_epoch = 0

    def on_epoch_begin(self) -> None:
        """Draws the order of the next epoch (called by Keras)."""
        self._order = self._order_of(self.next_epoch)
        self._epoch = self.next_epoch
        self.next_epoch += 1

    def __len__(self) -> int:
        """The number of batches in an epoch; the last may be shorter."""
        return -(-self.num_examples // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        """Batch `index` of the epoch: `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
        rows = self.rows_of(index)
        return keras.tree.map_structure(
            lambda a: None if a is None else a[rows], self._parts
        )

    def rows_of(self, batch: int, epochs_ago: int = 0) -> np.ndarray:
        """The rows of the arrays in a batch, in its order.

        Messages of `SGDPlus(nonfinite="raise")` and `"skip"` name rows by it. For an
        entry of `skipped_examples()`: `data.rows_of(entry.batch)[entry.positions[0]]`.

        Args:
            batch: Int. The number of a batch of an epoch, from 0.
            epochs_ago: Int >= 0. The epoch, counted back from the last that began.
                Defaults to `0`.

        Returns:
            Array of ints of shape `(num_examples,)`.
        """
        order = self._order
        if epochs_ago:
            order = self._order_of(self._epoch - epochs_ago)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _order_of(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        return rng.permutation(self.num_examples)


def check_positive(name: str, value: object) -> None:
    """Raises unless an int >= 1."""
    received = f"{name}={settings.shown(value)}"
    text = f"`{name}` must be an int >= 1. Received: {received}. Use 1 or more."
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(text)
    if value < 1:
        raise ValueError(text)


def _checked_seed(value: object) -> Any:
    if value is None:
        raise TypeError(
            "`seed` must be an int from 0 to 2**63 - 1. Received: seed=None. Use "
            "seed=0, say: a derived seed would give another order in the next process."
        )
    return settings.checked("seed", value)


def num_examples_of(parts: Sequence[Any]) -> int:
    """The number of examples in x, y and sample_weight; ValueError if they disagree."""
    named = examples.named_leaves(tuple(parts))
    lengths = [int(a.shape[0]) if len(a.shape) else 0 for _, a in named]
    if not lengths or 0 in lengths or len(set(lengths)) > 1:
        wrong = next((i for i, n in enumerate(lengths) if n != lengths[0]), 0)
        some = [named[i] for i in sorted({0, wrong}) if named]
        shown = [f"{name} of shape {array.shape}" for name, array in some]
        raise ValueError(
            "x, y and sample_weight must have the same number of examples, one or "
            f"more. Received: {' and '.join(shown) or 'no array'}. Give every example "
            "its target (and weight)."
        )
    return lengths[0]
