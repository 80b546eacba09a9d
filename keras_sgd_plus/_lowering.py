"""Other forms of some operations, used only while a loop is traced in this thread.

XLA:CPU compiles some of what Keras's layers ask for badly. The forms here and in
`_convolution` compute the same, up to the order of additions, and suit it better.
`KERAS_SGD_PLUS_LOWERING=0` in the environment switches them off.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

SWITCH = "KERAS_SGD_PLUS_LOWERING"
_CHEAP = 3  # operations that may as well be repeated
_SHORT = range(16, 64)  # lengths of dot products that gain from partial sums
_FREE = ("Reshape", "Identity", "Squeeze", "ExpandDims", "Cast")
_STORED = ("Const", "GatherV2", "MatMul", "Placeholder")


class _Scope(threading.local):
    one: Any = None  # () int32, always 1, which the compiler cannot know
    views: dict[int, tuple[Any, Any]] = {}  # id of a view -> the view, what it shows


_scope = _Scope()


@contextlib.contextmanager
def active(one: Any) -> Iterator[None]:
    """Lowers what this thread traces; `one` is a tensor that is 1 at run time."""
    before = _scope.one, _scope.views
    _scope.one, _scope.views = (one if is_on() else None), {}
    try:
        yield
    finally:
        _scope.one, _scope.views = before


def is_on() -> bool:
    """Whether loops are to be lowered here: on a CPU, and not switched off."""
    on_cpu = not tf.config.list_physical_devices("GPU")
    return on_cpu and os.environ.get(SWITCH, "1") != "0"


def is_active() -> bool:
    """Whether this thread is tracing a loop."""
    return _scope.one is not None


def one() -> Any:
    """() int32 that is 1 at run time, which the compiler cannot know."""
    return _scope.one


def never() -> Any:
    """() bool that is False at run time, which the compiler cannot know."""
    return _scope.one < 1


def after(seen: Any, value: Any) -> Any:
    """`value`, which XLA cannot compute before `seen`: a choice that never falls."""
    return tf.where(never(), tf.cast(seen, value.dtype), value)


def is_below_one(i: Any) -> Any:
    """`i < 1`, unknown to the compiler."""
    return i < _scope.one


def show(stored: Any) -> Any:
    """The transpose of a matrix that the loop carries; `matmul` knows it again."""
    view = tf.transpose(stored)
    _scope.views[id(view)] = view, stored
    return view


def stored(view: Any) -> Any:
    """What `show` was given, or else the transpose."""
    _, matrix = _scope.views.get(id(view), (None, None))
    return tf.transpose(view) if matrix is None else matrix


def matmul(x: Any, matrix: Any) -> Any:
    """The product of rows, (..., inputs), with a matrix that is carried transposed.

    None if it is not. XLA would undo a transpose beside the product.
    """
    _, transposed = _scope.views.get(id(matrix), (None, None))
    if transposed is None or x.dtype != matrix.dtype or x.shape.rank < 2:
        return None
    rows = x if x.shape.rank == 2 else tf.reshape(x, (-1, x.shape[-1]))
    if is_costly(rows):
        rows = computed_once(rows)
    elif x.shape == transposed.shape and x.shape[0] == 1 and x.shape[1] in _SHORT:
        return _dot(rows, transposed)
    product = tf.matmul(rows, transposed, transpose_b=True)
    if x.shape.rank == 2:
        return product
    return tf.reshape(product, tf.concat([tf.shape(x)[:-1], [matrix.shape[-1]]], 0))


@tf.custom_gradient
def _dot(x: Any, y: Any) -> Any:
    """The product of two (1, n) as (1, 1), in four sums that do not wait for another.

    XLA:CPU adds fewer than 64 products one after the other.
    """
    products = x * y
    whole = x.shape[1] // 4 * 4
    sums = tf.reduce_sum(tf.reshape(products[:, :whole], (-1, 4)), 0, keepdims=True)
    pairs = sums[:, :2] + sums[:, 2:]
    total = pairs[:, :1] + pairs[:, 1:]
    for i in range(whole, x.shape[1]):
        total += products[:, i : i + 1]
    return total, lambda upstream: (upstream * y, upstream * x)


def computed_once(x: Any) -> Any:
    """The same tensor, which XLA computes once, and not again for each use of it.

    XLA repeats what is cheap, and a kernel's update would do so once per output. A
    division is not cheap to it; one by one changes nothing.
    """

    @tf.custom_gradient
    def divided(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        return x / tf.cast(_scope.one, x.dtype), lambda upstream: upstream

    return divided(x)


def is_costly(x: Any) -> bool:
    """Whether it is more than a few operations away from what XLA stores."""
    found, frontier = 0, [x.op]
    while frontier and found <= _CHEAP:
        op = frontier.pop()
        if op.type not in _STORED:
            found += op.type not in _FREE
            frontier += [tensor.op for tensor in op.inputs]
    return found > _CHEAP
