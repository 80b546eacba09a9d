"""The records that a log asks for, on their way from the loop to that log.

1. The loop fills tables with one row per group, tensors in and tensors out (`Record`).
2. At the end of a batch the graph writes them to a queue, or to variables (`Recorder`).
3. After the call of a train step Python reads these (`BatchRecord`), and hands them to
   the log (`start_recording`).

A recorder belongs to an optimizer and has none of its variables: nothing here is saved.
Compiled train functions write to it, so it outlives the log that first asked for it.
Where no log asks, `recorder_of` is None, and the loop has nothing of all this.
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Optimizer, PerObject, Structure, Tensor
from keras_sgd_plus._rule.gradient import Gradient, inner, norm, norm_of


class Wanted(NamedTuple):
    """Which records a log asks for, beside the two losses.

    Attributes:
        gradient_norm: whether the Euclidean norm of each gradient.
        prediction: whether the outputs of the model before each update.
        id: where the inputs tell an example's row: the key of a dict, or the number
            of a column; or None.
    """

    gradient_norm: bool = False
    prediction: bool = False
    id: str | int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that are recorded of each group."""
        norm = ("gradient_norm",) if self.gradient_norm else ()
        return ("loss", "unweighted_loss", *norm)


class Record(NamedTuple):
    """The record of one group; or the tables of all groups of a batch so far.

    The tables are in order of visit, and a part of the loop's carry.
    """

    numbers: Tensor  # (columns,), or (groups, columns), float32
    outputs: tuple[Tensor, ...]  # each (k or fewer, ...), or (groups, k, ...)


def no_records(
    wanted: Wanted,
    num_rows: int | Tensor,
    group_size: int,
    outputs: Sequence[tf.TensorSpec],
) -> Record:
    """The tables before the first group.

    Args:
        wanted: the quantities.
        num_rows: () int32, the groups that can be recorded.
        group_size: k.
        outputs: of the model on one group, each of shape (k, ...).
    """
    numbers = tf.zeros(tf.stack([num_rows, len(wanted.columns)]), tf.float32)
    shapes = [tf.stack([num_rows, group_size, *s.shape[1:]]) for s in outputs]
    pairs = zip(shapes, outputs, strict=True)
    return Record(numbers, tuple(tf.zeros(shape, s.dtype) for shape, s in pairs))


def with_record(
    tables: Record | tuple[()], number: Tensor, new: Record | tuple[()]
) -> Record | tuple[()]:
    """The tables with one more group.

    Args:
        tables: the records so far.
        number: () int32, the group's number in the order of visits.
        new: the record of the group. If it is (), none is wanted.
    """
    if not isinstance(new, Record):
        return tables

    def with_row(table: Tensor, row: Tensor) -> Tensor:
        return tf.tensor_scatter_nd_update(table, [[number]], _full(table, row)[None])

    return tf.nest.map_structure(with_row, tables, new)


def record(
    numbers: Sequence[Tensor], outputs: Sequence[Tensor], skip: Tensor | None
) -> Record:
    """The record of one group; NaN if the group was skipped.

    Args:
        numbers: each () float.
        outputs: of the model, each (k or fewer, ...).
        skip: () bool, or None where no group can be skipped.
    """
    row = tf.stack([tf.cast(number, tf.float32) for number in numbers])
    found = Record(row, tuple(outputs))
    if skip is None:
        return found

    def nan_if_skipped(tensor: Tensor) -> Tensor:
        if not tensor.dtype.is_floating:
            return tensor
        return tf.where(skip, tf.constant(float("nan"), tensor.dtype), tensor)

    return tf.nest.map_structure(nan_if_skipped, found)


def gradient_norm(gradients: Sequence[Gradient | None]) -> Tensor:
    """() float32, the Euclidean norm of the gradients of all weights together.

    Rows of a table that have the same index are added up before they are squared: the
    norm is that of the gradient as a tensor of the table's shape.
    """
    found = [g for g in gradients if g is not None]
    if not found:
        return tf.zeros(())
    total = tf.add_n([tf.cast(inner(g, g), tf.float32) for g in found])

    def by_scale() -> Tensor:  # squares overflow sooner than the norm
        return norm_of(tf.stack([tf.cast(norm(g), tf.float32) for g in found]))

    is_plain = total < tf.float32.max
    return tf.cond(is_plain, lambda: tf.sqrt(total), by_scale, name=xla.TAKEN)


def _full(table: Tensor, values: Tensor) -> Tensor:
    # Zeros for the members that a shorter group lacks.
    if values.shape[0] is not None and values.shape[0] == table.shape[1]:
        return values
    missing = tf.shape(table)[1] - tf.shape(values)[0]
    return tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))


def ids_of(x: Structure, id: str | int) -> Tensor:
    """(num_examples,) or (num_examples, 1) numbers, of the inputs of a batch.

    As they are: the log looks whether they are rows.

    Args:
        x: the inputs.
        id: the key of a dict, or the number of a column.

    Raises:
        ValueError: the inputs have no such key or column.
        TypeError: what is there are no integers of that shape.
    """
    return _column(x, id) if isinstance(id, int) else _entry(x, id)


def _entry(x: Structure, key: str) -> Tensor:
    found: Any = x.get(key) if isinstance(x, dict) else None
    if found is None:
        kind = f"a dict with {sorted(x)}" if isinstance(x, dict) else type(x).__name__
        raise ValueError(
            f"ExampleLog(id={key!r}) must find its rows among the inputs. Received: x, "
            f"{kind}. Give fit a dict with that key: the row of each example, an int. "
            "The model may ignore it: keras.Input((), name=..., dtype='int64')."
        )
    if not found.dtype.is_integer or found.shape[1:].num_elements() != 1:
        raise TypeError(
            f"x[{key!r}] must be the row of each example, integers of shape "
            f"(num_examples,). Received: {found.dtype.name} of shape "
            f"{tuple(found.shape)}. Use np.arange(num_examples), and shuffle it with "
            "the examples."
        )
    return found


def _column(x: Any, column: int) -> Tensor:
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != 2 or not -shape[1] <= column < shape[1]:
        kind = type(x).__name__ if shape is None else f"of shape {tuple(shape)}"
        raise ValueError(
            f"ExampleLog(id={column}) must find its rows in column {column} of the "
            f"inputs. Received: x, {kind}. Give fit one array (num_examples, columns) "
            "with it; the model may drop it: keras.layers.Lambda(lambda x: x[:, 1:])."
        )
    return x[:, column]


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
    arrays = [each[:4] for each in replicas]
    joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *arrays)
    return replicas[0]._replace(**dict(zip(BatchRecord._fields, joined, strict=False)))


_BATCHES_PER_READ = 8  # on an accelerator each read waits for it
_CAPACITY = 65_536  # examples of a batch, where XLA compiles the whole step
_ROWS = _CAPACITY + 1  # tables have room for one group more


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
        rows: list[Any] = [(_ROWS, *part.shape[1:]) for part in parts[1:]]
        # TensorFlow keeps variables of int32 on the host, whatever the device.
        dtypes = [tf.int64 if p.dtype == tf.int32 else p.dtype for p in parts]
        self._variables = list(map(variable, [(HEADER,), *rows], dtypes))
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
        self.watchers = 0  # callers that hand records on after a call
        self.calls = 0  # whose records have not been taken

    def see_outputs(self, structure: Structure, outputs: Sequence[Tensor]) -> None:
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
        header: Sequence[Tensor],
        tables: Any,
        order: Tensor | None,
        ids: Tensor | None,
    ) -> None:
        """Adds a batch, in the graph that walks it.

        Args:
            step: that is traced.
            header: of the batch, numbers as `HEADER` says.
            tables: of the batch.
            order: (num_examples,) int32, positions in the order of visits, or None if
                they were visited as they were handed over.
            ids: of the batch, numbers (num_examples,) or (num_examples, 1), or None.
        """
        # As few operations as can be: each costs as much as several examples.
        num_examples = header[1]
        parts = [tf.stack([tf.cast(number, tf.int64) for number in header])]
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
        self.calls = 0
        for slot in self._slots.values():
            collections.deque(slot.read(), maxlen=0)


Receive = Callable[[BatchRecord], None]

_recorders: PerObject[dict[Wanted, Recorder]] = PerObject(dict)
# Of the optimizers that are recorded now; entries go when their log stops.
_running: weakref.WeakKeyDictionary[Any, tuple[Recorder, Receive]] = (
    weakref.WeakKeyDictionary()
)


def start_recording(optimizer: Optimizer, wanted: Wanted, receive: Receive) -> Recorder:
    """Records an optimizer from its next batch on.

    Args:
        optimizer: an SGDPlus.
        wanted: the quantities.
        receive: gets the record of each batch.

    Raises:
        RuntimeError: it is recorded already.
    """
    if optimizer in _running:
        raise RuntimeError(
            "Only one ExampleLog may record an optimizer at a time. Received: a second "
            f"one for {optimizer.name!r}. Call stop() on the first, or give fit one "
            "log with all that is to be recorded."
        )
    recorder = _recorders[optimizer].setdefault(wanted, Recorder(wanted))
    recorder.clear()
    _running[optimizer] = recorder, receive
    return recorder


def stop_recording(optimizer: Optimizer) -> None:
    """Ends the recording of an optimizer, if there is any."""
    _running.pop(optimizer, None)


def running_recorder(optimizer: Optimizer) -> Recorder | None:
    """The recorder whose records a log gets now, or None."""
    return _running.get(optimizer, (None,))[0]


def wanted_of(optimizer: Optimizer) -> Wanted | None:
    """The quantities that a compiled step has to record; it is traced for them."""
    running = running_recorder(optimizer)
    return None if running is None else running.wanted


def recorder_of(optimizer: Optimizer) -> Recorder | None:
    """The recorder for a step that is traced now, if someone takes its records."""
    running = running_recorder(optimizer)
    return None if running is None or not running.watchers else running


def hand_on(optimizer: Optimizer) -> None:
    """Hands records that wait on to their log."""
    if optimizer in _running:
        recorder, receive = _running[optimizer]
        recorder.calls = 0
        for record in recorder.taken():
            receive(record)
