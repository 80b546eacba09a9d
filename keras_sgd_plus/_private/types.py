"""Names for objects of Keras and TensorFlow, and values that are kept beside them.

TensorFlow's stubs and what is inferred of Keras are wrong in places; there a local
variable is declared as `Any`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import keras
import tensorflow as tf

Graph: TypeAlias = tf.Graph
Layer: TypeAlias = keras.layers.Layer
Model: TypeAlias = keras.Model
Operation: TypeAlias = tf.Operation
Strategy: TypeAlias = tf.distribute.Strategy
Structure: TypeAlias = object  # tensors or arrays, or dicts, lists, tuples of them
Tensor: TypeAlias = tf.Tensor
Variable: TypeAlias = keras.Variable
Parts: TypeAlias = tuple[Structure, Structure, Structure]  # x, y, sample_weight

V = TypeVar("V")


class Optimizer(Protocol):
    """What is read of an SGDPlus, by rooms below that class.

    The `LossScaleOptimizer` around one has what it has of Keras.
    """

    name: str
    built: bool
    use_ema: bool
    nesterov: bool
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    momentum: float
    weight_decay: float | None
    max_loss_fraction: float | None
    examples_per_update: Any  # int; None where Keras makes its own step
    order: str
    seed: int
    nonfinite: str
    jit_compile: bool | str
    is_auto: bool
    waits_for_rate: bool

    @property
    def learning_rate(self) -> Any: ...

    @property
    def iterations(self) -> Any: ...

    @property
    def variables(self) -> list[Variable]: ...

    def build(self, variables: list[Variable]) -> None: ...

    def scale_loss(self, loss: Any) -> Any: ...

    def train_step(self, model: Model, data: Structure) -> Structure: ...


class PerObject(weakref.WeakKeyDictionary[Any, V], Generic[V]):
    """A value per optimizer or model, made when it is first asked for, by `[]`.

    It is no attribute of the object, because Keras's saver walks these; and it is weak,
    so that nothing is kept alive. A value must not refer to its object.

    Args:
        make: gives the value for one more object.
    """

    def __init__(self, make: Callable[[], V]) -> None:
        super().__init__()
        self._make = make

    def __getitem__(self, key: object) -> V:
        if key not in self:
            self[key] = self._make()
        return super().__getitem__(key)
