"""The rows that the inputs of a batch tell, for an `ExampleLog(id=...)`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_sgd_plus._private.types import Structure, Tensor

NO_ROW = -1
# Bits of the integers that a type has without gaps.
_EXACT_BITS = {tf.float64: 53, tf.float32: 24, tf.float16: 11, tf.bfloat16: 8}


def of(x: Structure, id: str | int) -> Tensor:
    """(num_examples,) or (num_examples, 1) integers, of the inputs of a batch.

    `NO_ROW` where a column has a number that is no integer, or too large to be exact.

    Args:
        x: the inputs.
        id: the key of a dict, or the number of a column.

    Raises:
        ValueError: the inputs have no such key or column.
        TypeError: what is there are no integers of that shape.
    """
    return _column(x, id) if isinstance(id, int) else _entry(x, id)


def _entry(x: Any, key: str) -> Tensor:
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
    numbers = x[:, column]
    if not numbers.dtype.is_floating:
        return tf.cast(numbers, tf.int64)
    limit = tf.cast(2.0 ** _EXACT_BITS[numbers.dtype], numbers.dtype)
    is_row = tf.equal(numbers, tf.round(numbers)) & (tf.abs(numbers) < limit)
    rows = tf.where(is_row, numbers, tf.cast(NO_ROW, numbers.dtype))
    return tf.cast(rows, tf.int64)
