"""Whether this thread traces a loop, and facts that the compiler cannot know.

XLA removes what it can prove to change nothing. A number that is one at run time, and
that it cannot know, keeps an order or a copy that would be lost.

Products with a kernel, handed to whoever keeps that kernel.

`keras.ops.matmul` asks `matmul` here while a loop is traced. Code whose kernels wait
for their updates (`_lazy`) answers it.

Lookups of rows in a table, handed to whoever keeps that table.

`keras.ops.take` asks `take` here while a loop is traced. Code that updates tables in
parts (`_lazy`) answers it.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Operation, Tensor, Variable

SWITCH = "KERAS_SGD_PLUS_LOWERING"
_CHEAP = 3  # operations that may as well be repeated
_FREE = ("Reshape", "Identity", "Squeeze", "ExpandDims", "Cast")
_STORED = ("Const", "GatherV2", "MatMul", "Placeholder")


class _Scope(threading.local):
    one: Tensor = None  # () int32, always 1, which the compiler cannot know
    # id of a matrix in the model's layout -> that matrix, and the one of the loop
    views: dict[int, tuple[Any, Any]] = {}
    # id of a tensor of errors -> that tensor, and those that are not zero (`pooled`)
    errors: dict[int, tuple[Any, Any]] = {}


_scope = _Scope()


@contextlib.contextmanager
def active(one: Tensor) -> Iterator[None]:
    """Lowers the ops that this thread traces; `one` is a tensor, 1 at run time."""
    before = _scope.one, _scope.views, _scope.errors
    _scope.one, _scope.views, _scope.errors = (one if is_on() else None), {}, {}
    try:
        yield
    finally:
        _scope.one, _scope.views, _scope.errors = before


def is_on() -> bool:
    """Whether loops are to be lowered here: on a CPU, and not switched off."""
    on_cpu = not tf.config.get_visible_devices("GPU")
    return on_cpu and not is_switched_off()


def is_switched_off() -> bool:
    """Whether the user wants loops that equal Keras's own, where XLA allows it."""
    return os.environ.get(SWITCH, "1") == "0"


def is_active() -> bool:
    """Whether this thread is tracing a loop."""
    return _scope.one is not None


def one() -> Tensor:
    """() int32 that is 1 at run time, which the compiler cannot know."""
    return _scope.one


def views() -> dict[int, tuple[Any, Any]]:
    """The matrices of this trace that the loop carries transposed (`layout`)."""
    return _scope.views


def errors() -> dict[int, tuple[Any, Any]]:
    """The tensors of this trace with few errors that are not zero (`pooled`)."""
    return _scope.errors


def after(seen: Tensor, value: Any) -> Tensor:
    """Returns `value` unchanged, but makes XLA schedule it after `seen`.

    A `tf.where` whose condition is always false at run time.
    """
    return tf.where(_scope.one < 1, tf.cast(seen, value.dtype), value)


def is_below_one(i: Any) -> Tensor:
    """`i < 1`, unknown to the compiler."""
    return i < _scope.one


def computed_once(x: Tensor) -> Tensor:
    """The same tensor, which XLA computes once, and not again for each use of it.

    XLA repeats what is cheap, and a kernel's update would do so once per output. A
    division is not cheap to it, and a division by one changes nothing.
    """

    @tf.custom_gradient
    def divided(x: Tensor) -> tuple[Any, Callable[[Any], Any]]:
        return x / tf.cast(_scope.one, x.dtype), lambda upstream: upstream

    return divided(x)


def is_costly(x: Tensor) -> bool:
    """Whether XLA computes it from stored tensors by more than a few operations."""
    if not tf.is_symbolic_tensor(x):  # a constant that the model holds has no operation
        return False
    found, frontier = 0, [x.op]
    while frontier and found <= _CHEAP:
        op = frontier.pop()
        if op.type not in _STORED and not _is_product(op):
            found += op.type not in _FREE
            frontier += [tensor.op for tensor in op.inputs]
    return found > _CHEAP


def _is_product(op: Operation) -> bool:
    # A convolution's product with a gradient of its own, whose outputs are identities.
    if op.type != "IdentityN" or op.inputs[0].op.type != "Reshape":
        return False
    return op.inputs[0].op.inputs[0].op.type == "MatMul"


# (variable, inputs) -> inputs times the variable, or None for another variable
Multiply = Callable[[Any, Any], Any]


class _Products(threading.local):
    multiply: Multiply | None = None


_products = _Products()


@contextlib.contextmanager
def answering_products(multiply: Multiply | None) -> Iterator[None]:
    """While it is open, `keras.ops.matmul` of this thread asks `multiply`."""
    before, _products.multiply = _products.multiply, multiply
    try:
        yield
    finally:
        _products.multiply = before


def ask_product(x: Tensor, variable: Variable) -> Any:
    """The product, or None where Keras or `layout` has to form it."""
    if _products.multiply is None or not isinstance(x, tf.Tensor):
        return None
    return _products.multiply(variable, x)


MIN_ENTRIES = 8_192  # of a table; smaller ones are updated as a whole

# (variable, indices) -> rows, (*indices.shape, width), or None for another variable
LookUp = Callable[[Any, Any], Any]


class _Lookups(threading.local):
    look_up: LookUp | None = None
    others: dict[int, Variable] = {}


_lookups = _Lookups()


@contextlib.contextmanager
def answering_lookups(look_up: LookUp) -> Iterator[dict[int, Any]]:
    """While it is open, `keras.ops.take` of this thread asks `look_up`.

    Yields large trainable variables for which it had no answer, by id: they fill up
    while the model is traced.
    """
    before = _lookups.look_up, _lookups.others
    _lookups.look_up, _lookups.others = look_up, {}
    try:
        yield _lookups.others
    finally:
        _lookups.look_up, _lookups.others = before


def is_large(variable: Variable) -> bool:
    """Whether a variable has the size and shape of a table."""
    shape = variable.shape
    return len(shape) == 2 and math.prod(shape) >= MIN_ENTRIES


def take(x: Tensor, indices: Tensor, axis: int | None = None) -> Any:
    """Rows of a table, in place of `keras.ops.take`; None where that has to do it."""
    look_up = _lookups.look_up
    if look_up is None or axis != 0 or not isinstance(x, keras.Variable):
        return None
    if isinstance(indices, (tf.SparseTensor, tf.RaggedTensor)):
        return None
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        return None
    rows = look_up(x, indices)
    if rows is None and x.trainable and is_large(x):
        _lookups.others[id(x)] = x
    return rows
