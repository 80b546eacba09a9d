"""Private names of TensorFlow's function graphs: which variables one uses directly.

Read in the sources of TensorFlow 2.21. Goes when a graph says so in public.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import names
from keras_sgd_plus._private.types import Operation, Tensor, Variable

# Operations on a variable that do not depend on its value.
_HARMLESS = ("VariableShape", "VarIsInitializedOp")


def handles(variable: Variable) -> list[Any]:
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
    for outer, inner in _captures(_graph()):
        if inner.dtype == tf.resource:
            number = by_handle.get(id(_root(outer)), -1)
            for op in inner.consumers() if number >= 0 else ():
                if op.type not in _HARMLESS:
                    found.setdefault(number, {})[op.name] = _writes(op, inner)
    return found


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _captures(graph: Any) -> list[tuple[Any, Any]]:
    return list(getattr(graph, "captures", ()))


def _root(tensor: Tensor) -> Any:
    # The tensor that the outermost graph captured.
    while tf.is_symbolic_tensor(tensor):
        outer = [e for e, i in _captures(tensor.graph) if i is tensor]
        if not outer:
            break
        tensor = outer[0]
    return tensor


def _writes(op: Operation, handle: Tensor) -> bool:
    module = names.module("tensorflow.python.framework.auto_control_deps_utils")
    _, written = names.call(module, "get_read_write_resource_inputs", op)
    return any(tensor is handle for tensor in written)
