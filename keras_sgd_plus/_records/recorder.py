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
CAPACITY = 65_536  # examples of a batch, where XLA compiles the whole step


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


class Step(NamedTuple):
    """Facts of the train step that is traced.

    Attributes:
        group_size: k.
        appends: whether a call walks several batches.
        is_compiled: whether XLA compiles the whole step. It can only write variables
            of a fixed shape, and its trace does not know the size of a batch.
    """

    group_size: int
    appends: bool
    is_compiled: bool


class _Slot:
    # The variables that one traced step writes: (rows, ...) each.
    def __init__(self, columns: int, outputs: Sequence[Any], step: Step) -> None:
        self.appends, self._is_fixed = step.appends, step.is_compiled
        size = CAPACITY if step.is_compiled else None
        variable = private_tensorflow.rows_variable
        header = None if size is None else _HEADER + size
        self.integers = variable((header,), tf.int64)
        self.numbers = variable((size, columns), tf.float32)
        self.ids = variable((size,), tf.int64)
        self.outputs = [variable((size, *t.shape[1:]), t.dtype) for t in outputs]

    def variables(self) -> list[Any]:
        return [self.integers, self.numbers, self.ids, *self.outputs]

    def write(self, variable: Any, rows: Any) -> None:
        if self.appends:
            rows = tf.concat([variable.read_value(), rows], 0)
        elif self._is_fixed:
            missing = [[0, variable.shape[0] - tf.shape(rows)[0]]]
            rows = tf.pad(rows, missing + [[0, 0]] * (rows.shape.rank - 1))
        variable.assign(rows)

    def read(self) -> list[np.ndarray] | None:
        # The rows of all batches; None if there are none.
        integers = self.integers.numpy()
        if not integers.any():
            return None
        if self._is_fixed:
            integers = integers[: _HEADER + integers[1]]
        return [integers, *(v.numpy() for v in self.variables()[1:])]

    def clear(self) -> None:
        # Where others are overwritten, the integers tell that nothing is there.
        for variable in self.variables() if self.appends else [self.integers]:
            shape = [size or 0 for size in variable.shape]
            variable.assign(tf.zeros(shape, variable.dtype))


class Recorder:
    """The variables for one optimizer and one choice of quantities.

    Args:
        wanted: the quantities.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.structure: Structure = None  # of the model's outputs, None in each place
        self._outputs: list[Any] = []  # specs of the outputs, (k, ...)
        self._slots: dict[Step, _Slot] = {}

    def see_outputs(self, structure: Structure, outputs: Sequence[Any]) -> None:
        """Notes the outputs of the model, while a step is traced.

        Args:
            structure: of the outputs.
            outputs: their tensors, (k, ...) each.
        """
        self.structure = keras.tree.map_structure(lambda _: None, structure)
        rows = [tuple(tensor.shape[1:]) for tensor in outputs]
        known = [tuple(spec.shape[1:]) for spec in self._outputs]
        if any(None in row for row in rows) or known not in ([], rows):
            shown = ", ".join(str(row) for row in [*known, *rows])
            raise NotImplementedError(
                "With ExampleLog(prediction=True) the outputs of the model must have "
                f"one known shape. Received: outputs of shapes {shown} per example. "
                "Pad the examples to one length, or use prediction=False."
            )
        self._outputs = [tf.TensorSpec(t.shape, t.dtype) for t in outputs]

    def close(
        self,
        step: Step,
        tables: Tables,
        order: Tensor,
        num_examples: Tensor,
        iterations: Tensor,
        ids: Tensor,
    ) -> None:
        """Adds a batch, in the graph that walks it.

        Args:
            step: that is traced.
            tables: of the batch.
            order: (num_examples,) int32, positions in the order of visits, or None if
                they were visited as they were handed over.
            num_examples: () int32.
            iterations: () int64, the raw counter before the batch.
            ids: of the batch, integers (num_examples,) or (num_examples, 1), or None.
        """
        if step not in self._slots:
            columns = len(self.wanted.columns)
            self._slots[step] = _Slot(columns, self._outputs, step)
        slot = self._slots[step]
        count = tf.cast(num_examples, tf.int64)
        header = tf.stack([iterations, count, step.group_size])
        positions = tf.range(count) if order is None else tf.cast(order, tf.int64)
        groups = -(-num_examples // step.group_size)
        slot.write(slot.integers, tf.concat([header, positions], 0))
        slot.write(slot.numbers, tables.numbers[:groups])
        if ids is not None:
            slot.write(slot.ids, tf.cast(tf.reshape(ids, [-1]), tf.int64))
        for variable, table in zip(slot.outputs, tables.outputs, strict=True):
            shape = [-1, *table.shape[2:]]
            slot.write(variable, tf.reshape(table, shape)[:num_examples])

    def taken(self) -> Iterator[BatchRecord]:
        """The batches since this was last called; forgets them."""
        for slot in self._slots.values():
            found = slot.read()
            if found is not None:
                slot.clear()
                integers, numbers, ids, *outputs = found
                yield from self._split(integers, numbers, ids, outputs)

    def clear(self) -> None:
        """Forgets batches that nobody has taken."""
        for slot in self._slots.values():
            slot.clear()

    def _split(
        self,
        integers: np.ndarray,
        numbers: np.ndarray,
        ids: np.ndarray,
        outputs: list[np.ndarray],
    ) -> Iterator[BatchRecord]:
        # The batches of one call, from the rows of all of them.
        place = first_group = first = 0
        while place < integers.size:
            header = integers[place : place + _HEADER]
            iterations, count, group_size = (int(i) for i in header)
            place += _HEADER + count
            positions = integers[place - count : place]
            group = np.arange(count) // group_size
            rows = numbers[first_group + group]
            columns = zip(self.wanted.columns, rows.T, strict=True)
            values = {"visited": iterations + group, **dict(columns)}
            own = slice(first, first + count)
            first += count
            first_group += -(-count // group_size)
            parts = [each[own] for each in outputs]
            yield BatchRecord(positions, values, parts, ids[own])
