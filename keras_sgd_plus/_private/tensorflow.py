"""Private names of TensorFlow: variables outside strategies, functions as Python.

Also: a strategy left for a while, whether one has workers, which operations of the
graph in the making use a variable directly, and constants that it makes once.

Read in the sources of TensorFlow 2.17 to 2.21.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.framework import auto_control_deps_utils
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from keras_sgd_plus._private.types import Graph, Operation, Strategy, Tensor


def variable(shape: tuple[int, ...], dtype: tf.DType = tf.int64) -> Any:
    """Zeros in a variable of this process alone, whatever strategy is open.

    `tf.Variable` asks the strategy, which would tie it to its replicas. Goes when that
    can be said to it.
    """
    with tf.init_scope():
        return ResourceVariable(tf.zeros(shape, dtype), trainable=False)


@contextlib.contextmanager
def plain_variables() -> Iterator[None]:
    """Variables of Keras, too, are made as by `variable`."""

    def creator(
        next_creator: Callable[..., tf.Variable], **kwargs: Any
    ) -> ResourceVariable:
        del next_creator
        return ResourceVariable(**kwargs)

    with tf.init_scope(), tf.variable_creator_scope(creator):
        yield


class _Inlining(threading.local):
    def __init__(self) -> None:
        self.is_on = False


_inlining = _Inlining()
_lock = threading.Lock()


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
    """Calls the Python code of each `tf.function` instead, in this thread alone.

    A `tf.function` inside the model was traced with the variables themselves, and would
    read the weights from before the batch. `tf.config.run_functions_eagerly`
    applies to all threads, so training in another thread would run eagerly. So this
    wraps the property that TensorFlow reads, which then looks at a flag of this thread,
    too. Goes when TensorFlow has such a switch.
    """
    cls: Any = type(tf.function(lambda: None))
    with _lock:
        original = cls._run_functions_eagerly
        if not hasattr(original.fget, "asks_thread"):

            def runs_eagerly(self: object) -> bool:
                return _inlining.is_on or original.fget(self)

            runs_eagerly.asks_thread = True  # type: ignore[attr-defined]
            cls._run_functions_eagerly = property(runs_eagerly)
    before, _inlining.is_on = _inlining.is_on, True
    try:
        yield
    finally:
        _inlining.is_on = before


def has_workers(strategy: Strategy) -> bool:
    """Whether a strategy trains with other processes; goes when it can be asked."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    extended: Any = strategy.extended
    return bool(extended._in_multi_worker_mode())


@contextlib.contextmanager
def without_strategy() -> Iterator[None]:
    """Leaves the open `tf.distribute` strategy for a while.

    TensorFlow keeps strategies on a stack of the thread; goes when one can be left in
    public.
    """
    library: Any = distribute_lib
    library._push_per_thread_mode(library._get_default_replica_mode())
    try:
        yield
    finally:
        library._pop_per_thread_mode()


# Operations on a variable that do not depend on its value.
_HARMLESS = ("VariableShape", "VarIsInitializedOp")


def handles(variable: tf.Variable) -> list[Tensor]:
    """The handles of a `tf.Variable` in this process, one per replica; [] without."""
    if isinstance(variable, tf.distribute.DistributedValues):
        parts = tf.distribute.get_strategy().experimental_local_results(variable)
    else:
        parts = (variable,)
    return [part.handle for part in parts if hasattr(part, "handle")]


def uses(by_handle: Mapping[int, int]) -> dict[int, dict[str, bool]]:
    """The operations of the graph in the making on some variables.

    A graph inside the model, such as a branch or a function, gets a variable from the
    graph around it, so its uses are seen as one operation here.

    Args:
        by_handle: id of a handle -> a number for the variable.

    Returns:
        Number of the variable -> name of the operation -> whether it may write.
    """
    found: dict[int, dict[str, bool]] = {}
    for outer, inner in _captures(tf.compat.v1.get_default_graph()):
        if inner.dtype == tf.resource:
            number = by_handle.get(id(_root(outer)), -1)
            for op in inner.consumers() if number >= 0 else ():
                if op.type not in _HARMLESS:
                    found.setdefault(number, {})[op.name] = _writes(op, inner)
    return found


def _captures(graph: Graph) -> list[tuple[Tensor, Tensor]]:
    return list(getattr(graph, "captures", ()))


def _root(tensor: Tensor) -> Tensor:
    # The tensor that the outermost graph captured.
    while tf.is_symbolic_tensor(tensor):
        outer = [e for e, i in _captures(tensor.graph) if i is tensor]
        if not outer:
            break
        tensor = outer[0]
    return tensor


def _writes(op: Operation, handle: Tensor) -> bool:
    _, written = auto_control_deps_utils.get_read_write_resource_inputs(op)
    return any(tensor is handle for tensor in written)


_SMALL = 256  # bytes of a constant
# A model may differentiate by a floating-point constant, and not by an equal one.
_INTEGERS = (tf.int32.as_datatype_enum, tf.int64.as_datatype_enum)


@contextlib.contextmanager
def shared_constants() -> Iterator[None]:
    """While it is open, equal integer constants of the graph in the making are one.

    Two of five operations of a deep network are such: shapes, axes, bounds of slices.
    Each is traced, and goes through every pass of TensorFlow. Goes when TensorFlow
    shares them.
    """
    graph: Any = tf.compat.v1.get_default_graph()
    create = graph._create_op_internal
    known: dict[Any, Operation] = {}

    def shared(op_type: str, inputs: Any, *args: Any, **kwargs: Any) -> Operation:
        attrs = kwargs.get("attrs")
        if op_type != "Const" or attrs is None or graph._control_dependencies_stack:
            return create(op_type, inputs, *args, **kwargs)
        value = attrs["value"].tensor
        if value.ByteSize() > _SMALL or value.dtype not in _INTEGERS:
            return create(op_type, inputs, *args, **kwargs)
        key = value.SerializeToString(deterministic=True)
        if key not in known:
            known[key] = create(op_type, inputs, *args, **kwargs)
        return known[key]

    graph._create_op_internal = shared
    try:
        yield
    finally:
        del graph._create_op_internal
