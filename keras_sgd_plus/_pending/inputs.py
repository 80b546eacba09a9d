"""What the inputs of a layer are computed from."""

from __future__ import annotations

from typing import Any

from keras_sgd_plus._private.types import Tensor


def sources(tensor: Tensor) -> set[int] | None:
    """Ids of the placeholders of the graph that a tensor is computed from.

    None where it also depends on an operation with a state of its own: a random draw,
    or a variable that is read directly.
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
        elif op.op_def is None or op.op_def.is_stateful:
            return None
        frontier += list(op.inputs)
        seen.update()
    return found
