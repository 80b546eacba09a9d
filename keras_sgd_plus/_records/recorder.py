"""Takes the records of batches from the graph to Python, through a queue.

A recorder belongs to an optimizer and has none of its variables: nothing here is saved.
Compiled train functions write to it, so it outlives the log that first asked for it.
"""

from __future__ import annotations

import collections
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
    record_of,
    together,
)
from keras_sgd_plus._records.tables import Tables, Wanted

_BATCHES_PER_READ = 8  # on an accelerator each read waits for it
_CAPACITY = 65_536  # examples of a batch, where XLA compiles the whole step
_ROWS = _CAPACITY + 1  # tables have room for one group more


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
        in_order: whether examples are visited as they are handed over.
        group_size: k.
        batches_per_call: batches that a call walks.
        is_compiled: whether XLA compiles the whole step. It can only write variables
            of a fixed shape, and its trace does not know the size of a batch.
    """

    replica: int
    in_order: bool
    group_size: int
    batches_per_call: int
    is_compiled: bool


class _Queue:
    # What one traced step writes. A queue holds tensors as they are; a variable would
    # have to be copied to take one more batch.
    def __init__(self, parts: Sequence[Tensor]) -> None:
        with tf.init_scope():
            self._queue = tf.queue.FIFOQueue(-1, [part.dtype for part in parts])

    def write(self, parts: Sequence[Tensor]) -> None:
        self._queue.enqueue(list(parts))

    def read(self) -> Iterator[list[np.ndarray]]:
        dtypes, handle = self._queue.dtypes, self._queue.queue_ref
        for _ in range(int(self._queue.size())):
            parts: Any = tf.raw_ops.QueueDequeueV2(
                handle=handle, component_types=dtypes
            )
            yield [part.numpy() for part in parts]


class _Variables:
    # The same where XLA compiles the whole step, which knows no queues: variables of a
    # fixed size, in which a batch overwrites the one before.
    def __init__(self, parts: Sequence[Tensor]) -> None:
        variable = private_tensorflow.variable
        rows = [(_ROWS, *part.shape[1:]) for part in parts[1:]]
        shapes = zip([(HEADER,), *rows], parts, strict=True)
        self._variables = [variable(s, _kept_as(part)) for s, part in shapes]
        self._calls = variable(())
        self._taken = 0

    def write(self, parts: Sequence[Tensor]) -> None:
        self._variables[0].assign(parts[0])
        for variable, part in zip(self._variables[1:], parts[1:], strict=True):
            missing = [[0, _ROWS - tf.shape(part)[0]]]
            padding = missing + [[0, 0]] * (part.shape.rank - 1)
            variable.assign(tf.pad(tf.cast(part, variable.dtype), padding))
        self._calls.assign_add(1)

    def read(self) -> Iterator[list[np.ndarray]]:
        calls = int(self._calls.numpy())
        if calls > self._taken:
            yield [variable.numpy() for variable in self._variables]
        self._taken = calls


def _kept_as(part: Tensor) -> Any:
    # TensorFlow keeps variables of int32 on the host, whatever the device.
    return tf.int64 if part.dtype == tf.int32 else part.dtype


class Recorder:
    """The variables for one optimizer and one choice of quantities.

    Args:
        wanted: the quantities.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.structure: Structure = None  # of the model's outputs, None in each place
        self._outputs: list[Any] = []  # specs of the outputs, (k, ...)
        self._slots: dict[Step, _Queue | _Variables] = {}

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
        place: Tensor,
        iterations: Tensor,
        ids: Tensor,
        part: Part | None,
    ) -> None:
        """Adds a batch, in the graph that walks it.

        Args:
            step: that is traced.
            tables: of the batch.
            order: (num_examples,) int32, positions in the order of visits, or None if
                they were visited as they were handed over.
            num_examples: () int32.
            place: (3,) int64, the number of `fit`, the epoch and that of the batch.
            iterations: () int64, the raw counter before the batch.
            ids: of the batch, numbers (num_examples,) or (num_examples, 1), or None.
            part: where these examples are in the batch of several replicas, or None.
        """
        # As few operations as can be: each costs as much as several examples.
        part = Part(0, num_examples) if part is None else part
        header = [iterations, num_examples, step.group_size, part.size, part.first]
        numbers = [tf.cast(number, tf.int64) for number in header]
        parts = [tf.stack([*numbers, *tf.unstack(place)])]
        parts += [tables.numbers, *([] if order is None else [order])]
        if ids is not None:
            parts.append(tf.reshape(ids, [-1]))
        for table in tables.outputs:
            parts.append(tf.reshape(table, [-1, *table.shape[2:]])[:num_examples])
        if step not in self._slots:
            made = _Variables if step.is_compiled else _Queue
            self._slots[step] = made(parts)
        self._slots[step].write(parts)

    @property
    def calls_per_read(self) -> int:
        """After how many calls of train functions `taken` is to be called."""
        if self.wanted.prediction or any(step.is_compiled for step in self._slots):
            return 1
        most = max((step.batches_per_call for step in self._slots), default=1)
        return max(_BATCHES_PER_READ // most, 1)

    def taken(self) -> Iterator[BatchRecord]:
        """The batches since this was last called; forgets them."""
        for step in [step for step in self._slots if not step.replica]:
            slots = [s for k, s in self._slots.items() if k._replace(replica=0) == step]
            for batch in zip(*(slot.read() for slot in slots), strict=True):
                replicas = [
                    record_of(parts, self.wanted, step.in_order) for parts in batch
                ]
                yield replicas[0] if len(replicas) == 1 else together(replicas)

    def clear(self) -> None:
        """Forgets batches that nobody has taken."""
        for slot in self._slots.values():
            collections.deque(slot.read(), maxlen=0)
