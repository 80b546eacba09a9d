"""What the inputs of a layer are computed from."""

from __future__ import annotations

from typing import Any

from keras_sgd_plus._lowering import one_kernel
from keras_sgd_plus._private.types import Tensor

_CONTROL_FLOW = ("While", "If", "Call")  # in an operation's type
_MAX_OPERATIONS = 200


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
