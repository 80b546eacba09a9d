"""Takes the records of batches from the graph to Python, through variables.

A recorder belongs to an optimizer and is none of its variables: nothing here is saved.
Compiled train functions write to it, so it outlives the log that first asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Structure, Tensor
from keras_sgd_plus._records.tables import Tables, Wanted

# Integers of a batch before its positions: the updates before it, its examples, and
# the size of its groups.
_HEADER = 3


class BatchRecord(NamedTuple):
    """The records of one batch; arrays are in the order of visits.

    Attributes:
        positions: (num_examples,) int64, each example's place in the batch.
        values: by name, (num_examples, ...). "visited" is the number of updates that
            were made before the example's own.
        outputs: (num_examples, ...) each, of the model; none if they are not recorded.
        ids: (num_examples,) int64, in the order of the batch; empty without.
    """

    positions: np.ndarray
    values: dict[str, np.ndarray]
    outputs: list[np.ndarray]
    ids: np.ndarray


class Recorder:
    """The variables for one optimizer and one choice of quantities.

    Args:
        wanted: the quantities.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.structure: Structure = None  # of the model's outputs, None in each place
        self._appends = False
        growing = private_tensorflow.growing_variable
        self._integers = growing((), tf.int64)
        self._numbers = growing((len(wanted.columns),), tf.float32)
        self._ids = growing((), tf.int64)
        self._outputs: list[Any] = []

    def see_outputs(self, structure: Structure, outputs: Sequence[Any]) -> None:
        """Notes the outputs of the model, while a step is traced.

        Args:
            structure: of the outputs.
            outputs: their tensors or specs, (k, ...) each.
        """
        self.structure = keras.tree.map_structure(lambda _: None, structure)
        rows = [tuple(tensor.shape[1:]) for tensor in outputs]
        known = [tuple(variable.shape[1:]) for variable in self._outputs]
        if any(None in row for row in rows) or known not in ([], rows):
            shown = ", ".join(str(row) for row in [*known, *rows])
            raise NotImplementedError(
                "With ExampleLog(prediction=True) the outputs of the model must have "
                f"one known shape. Received: outputs of shapes {shown} per example. "
                "Pad the examples to one length, or use prediction=False."
            )
        if not known:
            growing = private_tensorflow.growing_variable
            pairs = zip(rows, outputs, strict=True)
            self._outputs = [growing(row, tensor.dtype) for row, tensor in pairs]

    def close(
        self,
        tables: Tables,
        order: Tensor,
        num_examples: Tensor,
        iterations: Tensor,
        group_size: int,
        ids: Tensor,
        appends: bool,
    ) -> None:
        """Adds a batch, in the graph that walks it.

        Args:
            tables: of the batch.
            order: (num_examples,) int32, positions in the order of visits, or None if
                they were visited as they were handed over.
            num_examples: () int32.
            iterations: () int64, the raw counter before the batch.
            group_size: k.
            ids: of the batch, integers (num_examples,) or (num_examples, 1), or None.
            appends: whether a call walks several batches.
        """
        self._appends = appends
        count = tf.cast(num_examples, tf.int64)
        header = tf.stack([iterations, count, group_size])
        positions = tf.range(count) if order is None else tf.cast(order, tf.int64)
        groups = -(-num_examples // group_size)
        rows = [(self._integers, tf.concat([header, positions], 0))]
        rows.append((self._numbers, tables.numbers[:groups]))
        if ids is not None:
            rows.append((self._ids, tf.cast(tf.reshape(ids, [-1]), tf.int64)))
        for variable, table in zip(self._outputs, tables.outputs, strict=True):
            shape = tf.concat([[-1], tf.shape(table)[2:]], 0)
            rows.append((variable, tf.reshape(table, shape)[:num_examples]))
        for variable, new in rows:
            old = variable.read_value()
            variable.assign(tf.concat([old, new], 0) if appends else new)

    def taken(self) -> Iterator[BatchRecord]:
        """The batches since this was last called; forgets them."""
        integers = self._integers.numpy()
        if not integers.size:
            return
        numbers, ids = self._numbers.numpy(), self._ids.numpy()
        outputs = [variable.numpy() for variable in self._outputs]
        if self._appends:
            self.clear()
        else:  # the others are overwritten
            _empty(self._integers)
        first = first_group = first_example = 0
        while first < integers.size:
            header = integers[first : first + _HEADER]
            iterations, count, group_size = (int(i) for i in header)
            first += _HEADER
            positions = integers[first : first + count]
            first += count
            group = np.arange(count) // group_size
            columns = zip(
                self.wanted.columns, numbers[first_group + group].T, strict=True
            )
            values = {"visited": iterations + group, **dict(columns)}
            examples = slice(first_example, first_example + count)
            first_group += -(-count // group_size)
            first_example += count
            parts = [each[examples] for each in outputs]
            yield BatchRecord(positions, values, parts, ids[examples])

    def clear(self) -> None:
        """Forgets batches that nobody has taken."""
        for variable in (self._integers, self._numbers, self._ids, *self._outputs):
            _empty(variable)


def _empty(variable: Any) -> None:
    variable.assign(tf.zeros((0, *variable.shape[1:]), variable.dtype))
