"""Variables that a graph of the model uses by itself, past the scope.

A function that was restored from a SavedModel, or traced before training, holds the
`tf.Variable`s. It would read the weights from before the batch, and no gradient would
reach the weights in the carry. Such variables are *direct*: the loop writes each value
that they get into them, so that the function reads it, and their gradient is the sum of
that by the value and that by the `tf.Variable`.

A variable that Keras does not train and that the loop never writes is none of them: it
is the same in the carry and in itself, even if a function of the model writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from keras_sgd_plus._loop.carry import Carry
from keras_sgd_plus._loop.trace_again import TraceAgain
from keras_sgd_plus._private import captures, keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Tensor, Variable


class DirectVariables:
    """The direct variables during one update.

    Args:
        carry: the variables of the loop.
        positions: of direct ones in the carry.
    """

    def __init__(self, carry: Carry, positions: Collection[int]) -> None:
        variables = [carry.variables[i] for i in positions]
        self._carry = carry
        self._natives = {id(v): keras_optimizer.native(v) for v in variables}
        # By position, names of operations that are the loop's own.
        self._known = captures.uses(carry.handles)
        self._own: set[str] = set()

    def native(self, variable: Variable) -> Any:
        """The `tf.Variable` of a direct variable; None for any other."""
        return self._natives.get(id(variable))

    def write(self, variable: Variable, value: Tensor) -> None:
        """Gives a direct variable its value; does nothing for any other."""
        native = self.native(variable)
        if native is not None:
            operation = native.assign(value, read_value=False)
            if operation is not None:  # None where nothing is traced
                self._own.add(operation.name)

    def check(
        self, model: Model, positions: Iterable[int], seen: Iterable[Any]
    ) -> None:
        """Looks at what the model has used by itself.

        Args:
            model: for the names of its layers.
            positions: in the carry, of variables that the loop writes.
            seen: `tf.Variable`s that a tape saw it read, where nothing is traced.

        Raises:
            TraceAgain: variables have to be direct, and are not.
            NotImplementedError: the model writes one of them by itself.
        """
        found = captures.uses(self._carry.handles)
        for native in seen:
            position = self._carry.handles.get(id(native.handle))
            if position is not None:
                found.setdefault(position, {})["read"] = False
        new: list[Variable] = []
        for position in sorted(found.keys() & set(positions)):
            known = {*self._known.get(position, ()), *self._own}
            writes = [w for name, w in found[position].items() if name not in known]
            variable = self._carry.variables[position]
            if any(writes):
                raise NotImplementedError(_written_twice(model, variable))
            if writes and self.native(variable) is None:
                new.append(variable)
        if new:
            raise TraceAgain(direct=new)


def refuse(model: Model, variables: Iterable[Variable]) -> None:
    """Raises NotImplementedError if there are direct variables: under a strategy."""
    for variable in variables:
        raise NotImplementedError(
            "Under a tf.distribute strategy the layers of a model must read their "
            f"weights through Keras. Received: {_owner(model, variable)}, which reads "
            f"{variable.path!r} from the tf.Variable itself, as a function restored "
            f"from a SavedModel does. {_FIX}"
        )


_FIX = (
    "Make the layer anew in Keras, from its config or with keras.models.load_model, "
    "and give it the weights with set_weights. Or freeze it with "
    "layer.trainable = False, and compile the model anew."
)


def _written_twice(model: Model, variable: Variable) -> str:
    return (
        "A variable must be written either by Keras or by the model itself. Received: "
        f"{variable.path!r} of {_owner(model, variable)}, which Keras trains or "
        "updates, and which a function of the model assigns on the tf.Variable (one "
        f"restored from a SavedModel, say). {_FIX}"
    )


def _owner(model: Model, variable: Variable) -> str:
    # The innermost layer that has the variable.
    layers = keras_model.layers(model)
    owners = [x for x in layers if any(v is variable for v in x.variables)]
    if not owners:
        return f"model {model.name!r}"
    layer = min(owners, key=lambda x: len(x.variables))
    return f"layer {layer.name!r} ({type(layer).__name__})"
