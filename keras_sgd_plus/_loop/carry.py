"""The variables that a loop carries: read them to tensors, commit new values back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import captures, keras_backend, keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer, Tensor, Variable


class Carry:
    """The variables that one batch may change, each once, in a fixed order.

    Args:
        model: the model in training, built.
        optimizer: its optimizer or the `LossScaleOptimizer` around that, built.
        extras: variables of neither model nor optimizer that an earlier trace wrote.
    """

    def __init__(
        self, model: Model, optimizer: Optimizer, extras: Iterable[Any] = ()
    ) -> None:
        self.trainable = list(model.trainable_variables)
        seed_state = keras_backend.found_global_seed_state()
        candidates = [
            *self.trainable,
            *model.non_trainable_variables,
            *model.metrics_variables,
            *optimizer.variables,
            *([] if seed_state is None else [seed_state]),
            *extras,
        ]
        self.variables = list({id(v): v for v in candidates}.values())
        self._positions = {id(v): i for i, v in enumerate(self.variables)}
        # id of the handle of a `tf.Variable` -> the position of the variable
        self.handles = {
            id(handle): i
            for i, v in enumerate(self.variables)
            for handle in captures.handles(keras_optimizer.native(v))
        }

    def index(self, variable: Variable) -> int:
        """The position of a variable."""
        return self._positions[id(variable)]

    def read(self) -> list[tf.Tensor]:
        """The current values."""
        return [tf.convert_to_tensor(v.value) for v in self.variables]

    def specs(self) -> list[tf.TensorSpec]:
        """Shapes and dtypes of the values."""
        return [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]

    def commit(self, values: dict[int, Tensor]) -> None:
        """Writes values by their variables' positions."""
        for position, value in values.items():
            self.variables[position].assign(value)
