"""The first batches of the data, as `fit` would hand them over, kept to be read again.

Each candidate of a search must see the same examples in the same order, and a data set
that shuffles gives others at each pass. So batches are read once, and kept. They come
through the pipeline of `fit`, with its batch size, and are handed on with its types:
the train function is traced and compiled as `fit` alone would do it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._callbacks.seeded_arrays import num_examples_of
from keras_sgd_plus._loop import examples
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Parts, Structure
from keras_sgd_plus._rule.ours import per_example
from keras_sgd_plus._rule.rule import expect_batches


class Part(NamedTuple):
    """A part of a batch: groups from `first` to the one before `end`, 0 for all.

    Attributes:
        batch: the whole one.
        first: number of a group.
        end: number of a group, or 0.
        window: to which the losses of these groups belong.
    """

    batch: Structure
    first: int
    end: int
    window: int


class Batches:
    """The first batches of some data; each is read when it is first asked for.

    Args:
        model: that `fit` would train.
        data: x, y and sample_weight, as for `fit`; arrays or a data set.
        batch_size: of arrays.
        class_weight: as for `fit`.
        seed: of the draw of examples from arrays; None: the first ones.
        num_rows: of arrays that may be drawn; None: all.
    """

    def __init__(
        self,
        model: Model,
        data: Parts,
        batch_size: int | None,
        class_weight: dict[int, float] | None = None,
        seed: int | None = None,
        num_rows: int | None = None,
    ) -> None:
        self._model: Any = model
        self._class_weight = class_weight
        self._batch_size = batch_size or keras_trainer.BATCH_SIZE
        self._batches: list[Structure] = []
        self._sizes: list[int] = []
        if keras_trainer.are_arrays(data):
            expect_batches(per_example(self._model.optimizer), self._batch_size)
            self._data = data
            length = num_examples_of(data)
            count = length if num_rows is None else num_rows
            self._rows = np.arange(count)
            # Whether the size of a batch is known depends on the number of examples.
            whole = data if count == length else _take(data, self._rows)
            if seed is not None:
                self._rows = np.random.default_rng(seed).permutation(count)
            self._spec = self._pipeline(whole).element_spec
            self._source = self._of_arrays()
        else:
            x: Any = data[0]
            _refuse_read_once(x)
            if is_python := isinstance(x, keras.utils.PyDataset):
                x = _FirstPass(x)
            pipeline = self._pipeline((x, *data[1:]))
            self._spec = pipeline.element_spec
            self._source = self._of_items(x) if is_python else iter(pipeline)

    def first(self, num_examples: int) -> list[Structure]:
        """The first whole batches, with `num_examples` or as many as there are.

        At least one batch. A shorter one is only taken where the data end with it.
        """
        while sum(self._sizes) < num_examples:
            batch = next(self._source, None)
            if batch is None:
                break
            leaves = tf.nest.flatten(batch)
            self._batches.append(batch)
            self._sizes.append(int(examples.count(leaves[0])))
        total = np.cumsum(self._sizes)
        most = max(1, int(np.sum(total <= num_examples)))
        return self._batches[:most]

    def sizes(self, batches: list[Structure]) -> list[int]:
        """The number of examples in each of the first batches."""
        return self._sizes[: len(batches)]

    def again(self, batches: list[Structure]) -> Iterator[Structure]:
        """An iterator over batches, of the type that `fit` gives a train function."""
        data = tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=self._spec
        )
        return iter(data)

    def parts(
        self, batches: list[Structure], group_size: int, windows: int
    ) -> list[Part]:
        """The first batches, in parts that end where a window ends.

        Batches that cannot be cut are whole.

        Args:
            batches: the first ones.
            group_size: examples per update.
            windows: of equal numbers of updates, as far as they can be.
        """
        sizes = self.sizes(batches)
        updates = [-(-size // group_size) for size in sizes]
        total, start = sum(updates), 0
        ends = [-(-w * total // windows) for w in range(1, windows)]
        found: list[Part] = []
        for batch, size, count in zip(batches, sizes, updates, strict=True):
            is_cut = self.can_be_cut(size, group_size)
            inside = {end - start for end in ends if start < end < start + count}
            places = [0, *(sorted(inside) if is_cut else []), count]
            for first, end in itertools.pairwise(places):
                window = min((start + first) * windows // total, windows - 1)
                found.append(Part(batch, first, end if is_cut else 0, window))
            start += count
        return found

    def can_be_cut(self, size: int, group_size: int) -> bool:
        """Whether a batch of `size` examples can be visited in parts.

        Not where a call takes several, a shorter group is left over, or a `train_step`
        of the model's own may train on something else than the batch.
        """
        is_stock = keras_trainer.has_stock_train_step(self._model)
        return (
            is_stock and self._model.steps_per_execution == 1 and size % group_size == 0
        )

    def close(self) -> None:
        """Ends the threads that read ahead: they may use generators of the user's."""
        self._source = iter(())

    def _pipeline(self, data: Parts) -> tf.data.Dataset[Any]:
        return keras_trainer.pipeline(
            self._model, data, self._batch_size, self._class_weight
        )

    def _of_items(self, dataset: keras.utils.PyDataset) -> Iterator[Structure]:
        # One by one, in this thread: another would read ahead, and use generators of
        # Python or NumPy while they are put back.
        last: Any = dataset.num_batches  # None: without end
        for index in itertools.count() if last is None else range(last):
            yield from self._pipeline((_OneBatch(dataset[index]), None, None))

    def _of_arrays(self) -> Iterator[Structure]:
        # Few batches at a time: examples may be large.
        start = 0
        while start < len(self._rows):
            rows = self._rows[start : start + self._batch_size]
            yield from self._pipeline(_take(self._data, rows))
            start += self._batch_size


def _take(data: Parts, positions: np.ndarray) -> Any:
    # Examples of arrays of any kind that Keras takes.
    def take(array: Any) -> Any:
        if array is None:
            return None
        if hasattr(array, "iloc"):
            return array.iloc[positions]
        if isinstance(array, (tf.Tensor, tf.RaggedTensor, tf.Variable)):
            return tf.gather(array, positions)
        if isinstance(array, tf.SparseTensor):
            return examples.gather_examples(array, tf.constant(positions, tf.int32))
        return array[positions]

    return keras.tree.map_structure(take, data)


def _refuse_read_once(x: Any) -> None:
    if hasattr(x, "__next__"):
        raise ValueError(
            "find_learning_rate needs data that can be read again. Received: "
            f"{type(x).__name__}, an iterator that is read once. Give arrays, a "
            "tf.data.Dataset (tf.data.Dataset.from_generator takes a function that "
            "makes the generator), or a keras.utils.PyDataset."
        )


class _FirstPass(keras.utils.PyDataset):
    # Another's batches, without telling it of epochs, and without its processes.
    def __init__(self, dataset: keras.utils.PyDataset) -> None:
        super().__init__()
        self._dataset = dataset

    @property
    def num_batches(self) -> int | None:
        return self._dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


class _OneBatch(keras.utils.PyDataset):
    def __init__(self, batch: Any) -> None:
        super().__init__()
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self._batch
