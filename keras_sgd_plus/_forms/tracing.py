"""What this thread's trace of a loop knows, and facts that the compiler cannot know.

The forms of this folder are used only while a loop is traced, and another thread may
train another model meanwhile, so each thread has its own `now`. `active` opens a trace;
`answering` names who keeps tables and kernels whose updates wait (`_lazy`), which
`keras.ops.take` and `keras.ops.matmul` then ask.

XLA removes what it can prove to change nothing. A number that is one at run time, and
that it cannot know, keeps an order or a copy that would be lost.
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
MIN_ENTRIES = 8_192  # of a table; smaller ones are updated as a whole

# (variable, indices) -> rows, (*indices.shape, width), or None for another variable
LookUp = Callable[[Variable, Tensor], Tensor | None]
# (variable, inputs) -> inputs times the variable, or None for another variable
Multiply = Callable[[Variable, Tensor], Tensor | None]


class _Trace(threading.local):
    """The trace of a loop in this thread.

    Attributes:
        one: () int32, always 1, which the compiler cannot know; None without a trace.
        views: id of a matrix in the model's layout -> that matrix, and the one that the
            loop carries transposed (`layout`).
        errors: id of a tensor of errors -> that tensor, and those of them that are not
            zero (`pooled`).
        look_up: answers `keras.ops.take`.
        multiply: answers `keras.ops.matmul`.
        others: by id, large trainable variables for which `look_up` had no answer.
    """

    def __init__(self) -> None:
        self.one: Any = None
        self.views: dict[int, tuple[Tensor, Tensor]] = {}
        self.errors: dict[int, tuple[Any, Any]] = {}
        self.look_up: LookUp | None = None
        self.multiply: Multiply | None = None
        self.others: dict[int, Variable] = {}


now = _Trace()


@contextlib.contextmanager
def _with(**facts: Any) -> Iterator[None]:
    before = {name: getattr(now, name) for name in facts}
    vars(now).update(facts)
    try:
        yield
    finally:
        vars(now).update(before)


def active(one: Tensor) -> contextlib.AbstractContextManager[None]:
    """Lowers the ops that this thread traces; `one` is a tensor, 1 at run time."""
    return _with(one=one if is_on() else None, views={}, errors={})


@contextlib.contextmanager
def answering(
    look_up: LookUp | None = None, multiply: Multiply | None = None
) -> Iterator[dict[int, Variable]]:
    """While it is open, `keras.ops.take` and `matmul` of this thread ask these.

    Yields large trainable variables for which `look_up` had no answer, by id: they fill
    up while the model is traced.
    """
    with _with(look_up=look_up, multiply=multiply, others={}):
        yield now.others


def is_on() -> bool:
    """Whether loops are to be lowered here: on a CPU, and not switched off."""
    on_cpu = not tf.config.get_visible_devices("GPU")
    return on_cpu and not is_switched_off()


def is_switched_off() -> bool:
    """Whether the user wants loops that equal Keras's own, where XLA allows it."""
    return os.environ.get(SWITCH, "1") == "0"


def is_active() -> bool:
    """Whether this thread is tracing a loop."""
    return now.one is not None


def one() -> Tensor:
    """() int32 that is 1 at run time, which the compiler cannot know."""
    return now.one


def after(seen: Tensor, value: Tensor) -> Tensor:
    """Returns `value` unchanged, but makes XLA schedule it after `seen`.

    A `tf.where` whose condition is always false at run time.
    """
    return tf.where(now.one < 1, tf.cast(seen, value.dtype), value)


def is_below_one(i: Tensor) -> Tensor:
    """`i < 1`, unknown to the compiler."""
    return i < now.one


def computed_once(x: Tensor) -> Tensor:
    """The same tensor, which XLA computes once, and not again for each use of it.

    XLA repeats what is cheap, and a kernel's update would do so once per output. A
    division is not cheap to it, and a division by one changes nothing.
    """

    @tf.custom_gradient
    def divided(x: Tensor) -> Any:
        return x / tf.cast(now.one, x.dtype), lambda upstream: upstream

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


def ask_product(x: Any, variable: Variable) -> Tensor | None:
    """The product, or None where Keras or `layout` has to form it."""
    if now.multiply is None or not isinstance(x, tf.Tensor):
        return None
    return now.multiply(variable, x)


def is_large(variable: Variable) -> bool:
    """Whether a variable has the size and shape of a table."""
    shape = variable.shape
    return len(shape) == 2 and math.prod(shape) >= MIN_ENTRIES


def take(
    x: Tensor | Variable, indices: Tensor, axis: int | None = None
) -> Tensor | None:
    """Rows of a table, in place of `keras.ops.take`; None where that has to do it."""
    if now.look_up is None or axis != 0 or not isinstance(x, keras.Variable):
        return None
    if isinstance(indices, (tf.SparseTensor, tf.RaggedTensor)):
        return None
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        return None
    rows = now.look_up(x, indices)
    if rows is None and x.trainable and is_large(x):
        now.others[id(x)] = x
    return rows
