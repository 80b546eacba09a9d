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
from keras_sgd_plus._records.batch_record import (
    HEADER,
    BatchRecord,
    batches,
    together,
)
from keras_sgd_plus._records.tables import Tables, Wanted

# Each read costs as much as tens of updates, and the more batches wait, the more is
# copied for each.
_BATCHES_PER_READ = 8
CAPACITY = 65_536  # examples of a batch, where XLA compiles the whole step


class Part(NamedTuple):
    """Where the examples that a replica walks are in the batch.

    Attributes:
        first: () int64, the examples before them.
        size: () int64, of the whole batch.
    """

    first: Tensor
    size: Tensor


class Step(NamedTuple):
    """Facts of the train step that is traced.

    Attributes:
        replica: of this process, from 0.
        group_size: k.
        batches_per_call: batches that a call walks.
        is_compiled: whether XLA compiles the whole step. It can only write variables
            of a fixed shape, and its trace does not know the size of a batch.
    """

    replica: int
    group_size: int
    batches_per_call: int
    is_compiled: bool


class _Slot:
    # The variables that one traced step writes. Everything but outputs of the model is
    # one vector of float64, since each read from Python takes as long as many updates:
    # per batch the header, positions, numbers and ids.
    def __init__(self, columns: int, outputs: Sequence[Any], step: Step) -> None:
        self.is_fixed = step.is_compiled  # then a batch overwrites the one before
        size = CAPACITY if step.is_compiled else None
        variable = private_tensorflow.rows_variable
        length = None if size is None else HEADER + size * (columns + 2)
        self.vector = variable((length,), tf.float64)
        self.outputs = [variable((size, *t.shape[1:]), t.dtype) for t in outputs]
        self._calls = private_tensorflow.variable(())
        self._taken = 0

    def next_call(self) -> Any:
        # () int64, above zero.
        return self._calls.assign_add(1) if self.is_fixed else 1

    def write(self, variable: Any, rows: Any) -> None:
        if self.is_fixed:
            missing = [[0, variable.shape[0] - tf.shape(rows)[0]]]
            rows = tf.pad(rows, missing + [[0, 0]] * (rows.shape.rank - 1))
        else:
            rows = tf.concat([variable.read_value(), rows], 0)
        variable.assign(rows)

    def read(self) -> tuple[np.ndarray, list[np.ndarray]] | None:
        # The vector and the outputs of all batches; None if they were read before.
        vector = self.vector.numpy()
        if not vector.size or (self.is_fixed and vector[0] <= self._taken):
            return None
        found = vector, [variable.numpy() for variable in self.outputs]
        self.clear()
        return found

    def clear(self) -> None:
        if self.is_fixed:
            self._taken = int(self._calls.numpy())
            return
        for variable in (self.vector, *self.outputs):
            none = np.zeros((0, *variable.shape[1:]), variable.dtype.as_numpy_dtype)
            variable.assign(none, read_value=False)


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
        part: Part,
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
            part: where these examples are in the batch of all replicas.
        """
        if step not in self._slots:
            columns = len(self.wanted.columns)
            self._slots[step] = _Slot(columns, self._outputs, step)
        slot = self._slots[step]
        count = tf.cast(num_examples, tf.int64)
        header = [slot.next_call(), iterations, count, step.group_size]
        header = [tf.cast(n, tf.float64) for n in (*header, part.size, part.first)]
        groups = -(-num_examples // step.group_size)
        numbers = tf.reshape(tables.numbers[:groups], [-1])
        parts = [tf.stack(header), tf.range(count) if order is None else order, numbers]
        if ids is not None:
            parts.append(tf.reshape(ids, [-1]))
        vector = tf.concat([tf.cast(part, tf.float64) for part in parts], 0)
        slot.write(slot.vector, vector)
        for variable, table in zip(slot.outputs, tables.outputs, strict=True):
            shape = [-1, *table.shape[2:]]
            slot.write(variable, tf.reshape(table, shape)[:num_examples])

    @property
    def calls_per_read(self) -> int:
        """After how many calls of train functions `taken` is to be called."""
        if self.wanted.prediction or any(s.is_fixed for s in self._slots.values()):
            return 1
        most = max((step.batches_per_call for step in self._slots), default=1)
        return max(_BATCHES_PER_READ // most, 1)

    def taken(self) -> Iterator[BatchRecord]:
        """The batches since this was last called; forgets them."""
        for step in [step for step in self._slots if not step.replica]:
            slots = [s for k, s in self._slots.items() if k._replace(replica=0) == step]
            parts = [self._batches(slot) for slot in slots]
            for replicas in zip(*parts, strict=True):
                yield replicas[0] if len(replicas) == 1 else together(replicas)

    def clear(self) -> None:
        """Forgets batches that nobody has taken."""
        for slot in self._slots.values():
            slot.clear()

    def _batches(self, slot: _Slot) -> Iterator[BatchRecord]:
        found = slot.read()
        if found is not None:
            yield from batches(*found, self.wanted, not slot.is_fixed)
