"""The record of one group, for an `ExampleLog`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._loop.backward import BackwardResult
from keras_sgd_plus._loop.example_update import ExampleUpdate
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Structure, Tensor
from keras_sgd_plus._records import Record, Recorder, gradient_norm, record


def record_group(
    update: ExampleUpdate,
    scope: Scope,
    y: Structure,
    found: BackwardResult,
    skip: Tensor,
) -> Record | tuple[()]:
    """The record of a group, before its update; () where none is wanted.

    Args:
        update: the update.
        scope: open, with the weights before the update.
        y: of the group.
        found: by the backward pass.
        skip: () bool, whether the group must change nothing, or None.
    """
    recorder: Recorder | None = update.recorder
    if recorder is None:
        return ()
    numbers = [found.loss, _unweighted(update, scope, y, found)]
    if recorder.wanted.gradient_norm:
        one = tf.ones((), found.loss.dtype)
        scale = tf.cast(update.outer.scale_loss(one), tf.float32)
        numbers.append(gradient_norm(found.gradients) / scale)
    outputs: list[Any] = []
    if recorder.wanted.prediction:
        outputs = [_as_numpy_can(t) for t in keras.tree.flatten(found.y_pred)]
        recorder.see_outputs(found.y_pred, outputs)
    return record(numbers, outputs, skip)


def _unweighted(
    update: ExampleUpdate, scope: Scope, y: Structure, found: BackwardResult
) -> Any:
    # In a scope of its own, so that Keras counts each loss of several outputs once.
    variables = update.carry.variables
    pairs = [(v, scope.get_current_value(v)) for v in variables]
    with keras.StatelessScope(state_mapping=pairs):
        loss = keras_model.compiled_loss(update.model, y, found.y_pred)
    return found.loss if loss is None else loss


def _as_numpy_can(tensor: Tensor) -> Any:
    # Files of NumPy know no bfloat16.
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
