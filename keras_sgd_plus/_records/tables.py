"""The records of one batch, while the loop walks it: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._private import xla
from keras_sgd_plus._private.types import Tensor
from keras_sgd_plus._rule import Gradient, inner, norm, norm_of


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
    """The record of one group."""

    numbers: Tensor  # (columns,) float32
    outputs: tuple[Tensor, ...]  # each (k or fewer, ...)


class Tables(NamedTuple):
    """The records of a batch so far, in order of visit; a part of the loop's carry."""

    numbers: Tensor  # (groups, columns) float32
    outputs: tuple[Tensor, ...]  # each (groups, k, ...)


def no_records(
    wanted: Wanted, num_rows: Tensor, group_size: int, outputs: Sequence[tf.TensorSpec]
) -> Tables:
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
    return Tables(numbers, tuple(tf.zeros(shape, s.dtype) for shape, s in pairs))


def with_record(tables: Any, number: Tensor, new: Any) -> Any:
    """The tables with one more group.

    Args:
        tables: the records so far.
        number: () int32, the group's number in the order of visits.
        new: the record of the group. If it is (), none is wanted.
    """
    if not isinstance(new, Record):
        return tables
    numbers = _with_row(tables.numbers, number, new.numbers)
    pairs = zip(tables.outputs, new.outputs, strict=True)
    return Tables(numbers, tuple(_with_row(t, number, _full(t, v)) for t, v in pairs))


def record(numbers: Sequence[Tensor], outputs: Sequence[Tensor], skip: Any) -> Record:
    """The record of one group; NaN if the group was skipped.

    Args:
        numbers: each () float.
        outputs: of the model, each (k or fewer, ...).
        skip: () bool, or None where no group can be skipped.
    """
    row = tf.stack([tf.cast(number, tf.float32) for number in numbers])
    if skip is None:
        return Record(row, tuple(outputs))
    return Record(_nan_if(skip, row), tuple(_nan_if(skip, each) for each in outputs))


def gradient_norm(gradients: Sequence[Gradient | None]) -> Tensor:
    """() float32, the Euclidean norm of the gradients of all weights together.

    Rows of a table that have the same index are added up before they are squared: the
    norm is that of the gradient as a tensor of the table's shape.
    """
    found = [g for g in gradients if g is not None]
    if not found:
        return tf.zeros(())
    total = tf.add_n([tf.cast(inner(g, g), tf.float32) for g in found])

    def by_scale() -> Any:  # squares overflow sooner than the norm
        return norm_of(tf.stack([tf.cast(norm(g), tf.float32) for g in found]))

    is_plain = total < tf.float32.max
    return tf.cond(is_plain, lambda: tf.sqrt(total), by_scale, name=xla.TAKEN)


def _with_row(table: Tensor, number: Tensor, row: Tensor) -> Any:
    return tf.tensor_scatter_nd_update(table, [[number]], row[None])


def _full(table: Tensor, values: Tensor) -> Any:
    # Zeros for the members that a shorter group lacks.
    if values.shape[0] is not None and values.shape[0] == table.shape[1]:
        return values
    missing = tf.shape(table)[1] - tf.shape(values)[0]
    return tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))


def _nan_if(skip: Any, tensor: Any) -> Any:
    if not tensor.dtype.is_floating:
        return tensor
    return tf.where(skip, tf.constant(float("nan"), tensor.dtype), tensor)
