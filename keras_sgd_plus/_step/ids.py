"""The rows that the inputs of a batch tell, for an `ExampleLog(id=...)`."""

from __future__ import annotations

from typing import Any

from keras_sgd_plus._private.types import Structure, Tensor


def of(x: Structure, id: str | int) -> Tensor:
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
    return x[:, column]
