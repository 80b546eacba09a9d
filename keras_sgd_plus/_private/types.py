"""Names for objects of Keras and TensorFlow, whose own annotations do not hold.

TensorFlow has none, and Keras's are inferred from defaults. The names tell a reader the
kind of an argument; a type checker takes them for anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Graph: TypeAlias = Any  # tf.Graph
Layer: TypeAlias = Any  # keras.layers.Layer
Model: TypeAlias = Any  # keras.Model
Operation: TypeAlias = Any  # tf.Operation
Optimizer: TypeAlias = Any  # keras.optimizers.Optimizer, mostly an SGDPlus
Strategy: TypeAlias = Any  # tf.distribute.Strategy
Structure: TypeAlias = Any  # dicts, lists and tuples of tensors or arrays
Tensor: TypeAlias = Any  # tf.Tensor
Variable: TypeAlias = Any  # keras.Variable
