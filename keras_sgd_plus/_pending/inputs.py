"""What the inputs of a layer are computed from."""

from __future__ import annotations

from typing import Any

import keras

from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._private import keras_graph
from keras_sgd_plus._private.types import Model, Tensor

_CONTROL_FLOW = ("While", "If", "Call")  # in an operation's type
_MAX_OPERATIONS = 200
_layers = keras.layers
_FIXED = (_layers.Flatten, _layers.Permute, _layers.Rescaling, _layers.Reshape)


def expected(model: Model) -> dict[int, Any]:
    """Kernels of Dense layers that are given the data, by id; with no variables.

    Read off the graph of a functional model, which spares the trace that would find it.
    The next trace looks whether it is so.
    """
    graph = keras_graph.graph_of(model)
    if graph is None:
        return {}
    made_by = {id(x.output): x for x in graph.layers if type(x) in _FIXED}
    data = {id(tensor) for tensor in graph.inputs}
    found = {}
    for layer in graph.layers:
        if type(layer) is keras.layers.Dense:
            tensor: Any = layer.input
            while id(tensor) in made_by:
                tensor = made_by[id(tensor)].input
            if id(tensor) in data:
                found[id(layer.kernel)] = []
    return found


def sources(tensor: Tensor) -> set[int] | None:
    """Ids of the placeholders of the graph that a tensor is computed from.

    None where it also depends on an operation with a state of its own: a random draw,
    or a variable that is read directly. None, too, where it takes more than some cheap
    operations, which would be traced and compiled once more, in a loop of their own.
    """
    found: set[int] = set()
    seen: set[int] = set()
    frontier: list[Any] = [tensor]
    while frontier:
        current = frontier.pop()
        op = current.op
        if id(op) in seen:
            continue
        seen.add(id(op))
        if op.type == "Placeholder":
            found.add(id(current))
        elif op.op_def is None or op.op_def.is_stateful or len(seen) > _MAX_OPERATIONS:
            return None
        elif one_kernel.products_of(op) or any(k in op.type for k in _CONTROL_FLOW):
            return None
        frontier += list(op.inputs)
    return found
