"""Lookups of rows in a table, handed to whoever keeps that table.

`keras.ops.take` asks `take` here while a loop is traced. Code that updates tables in
parts (`_pending`) answers it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Tensor, Variable

MIN_ENTRIES = 8_192  # of a table; smaller ones are updated as a whole

# (variable, indices) -> rows, (*indices.shape, width), or None for another variable
LookUp = Callable[[Any, Any], Any]


class _Active(threading.local):
    look_up: LookUp | None = None
    others: dict[int, Variable] = {}


_active = _Active()


@contextlib.contextmanager
def answered_by(look_up: LookUp) -> Iterator[dict[int, Any]]:
    """While it is open, `keras.ops.take` of this thread asks `look_up`.

    Yields large trainable variables for which it had no answer, by id: they fill up
    while the model is traced.
    """
    before = _active.look_up, _active.others
    _active.look_up, _active.others = look_up, {}
    try:
        yield _active.others
    finally:
        _active.look_up, _active.others = before


def is_large(variable: Variable) -> bool:
    """Whether a variable has the size and shape of a table."""
    shape = variable.shape
    return len(shape) == 2 and math.prod(shape) >= MIN_ENTRIES


def take(x: Tensor, indices: Tensor, axis: int | None = None) -> Any:
    """Rows of a table, in place of `keras.ops.take`; None where that has to do it."""
    look_up = _active.look_up
    if look_up is None or axis != 0 or not isinstance(x, keras.Variable):
        return None
    if isinstance(indices, (tf.SparseTensor, tf.RaggedTensor)):
        return None
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        return None
    rows = look_up(x, indices)
    if rows is None and x.trainable and is_large(x):
        _active.others[id(x)] = x
    return rows
