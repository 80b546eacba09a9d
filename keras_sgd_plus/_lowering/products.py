"""Products with a kernel, handed to whoever keeps that kernel.

`keras.ops.matmul` asks `matmul` here while a loop is traced. Code whose kernels wait
for their updates (`_pending`) answers it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor, Variable

# (variable, inputs) -> inputs times the variable, or None for another variable
Multiply = Callable[[Any, Any], Any]


class _Active(threading.local):
    multiply: Multiply | None = None


_active = _Active()


@contextlib.contextmanager
def answered_by(multiply: Multiply | None) -> Iterator[None]:
    """While it is open, `keras.ops.matmul` of this thread asks `multiply`."""
    before, _active.multiply = _active.multiply, multiply
    try:
        yield
    finally:
        _active.multiply = before


def matmul(x: Tensor, variable: Variable) -> Any:
    """The product, or None where Keras or `layout` has to form it."""
    if _active.multiply is None or not isinstance(x, tf.Tensor):
        return None
    return _active.multiply(variable, x)
