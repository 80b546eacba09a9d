"""Warnings, each once per model, and those that only the running graph can give."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import Model, Tensor, Variable

MAX_SIGNATURES = 8  # shapes of an example that go without a warning


class _Recorder:
    """The shapes that one model has met, and the warnings that it has given.

    It knows the model by name alone, so that it does not keep it alive.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.loss_name = "None"
        self.shapes: set[tuple[int, ...]] = set()
        self.said: set[str] = set()

    def warn(self, topic: str, text: str) -> None:
        if topic not in self.said:
            self.said.add(topic)
            warnings.warn(text)

    def see_shape(self, shape: Any) -> np.int32:
        self.shapes.add(tuple(int(d) for d in shape))
        if len(self.shapes) > MAX_SIGNATURES:
            text = (
                f"Model {self.model_name!r} was given examples of {len(self.shapes)} "
                "different shapes, and XLA compiles the per-example loop anew for "
                "each. Pad the examples to a few lengths (bucketing, "
                "`bucket_by_sequence_length` in tf.data)."
            )
            self.warn("shapes", text)
        return np.int32(0)

    def see_uneven(self, group_size: Any, num_examples: Tensor) -> np.int32:
        size, seen = int(group_size), int(num_examples)
        text = (
            "Every batch of an epoch but the last should be a multiple of "
            f"examples_per_update={size}. Received: a batch that ended after {seen} "
            f"examples with a group of {seen % size}, so the updates are not those of "
            f"batch_size={size}. Use a batch_size that {size} divides."
        )
        self.warn("groups", text)
        return np.int32(0)

    def see_negative(self) -> np.int32:
        text = (
            "With `max_loss_fraction` no loss must be below zero, which is taken for "
            f"the least that a loss can be. Received: model {self.model_name!r} with "
            f"loss={self.loss_name}, which was negative; such an update moves no "
            "weight. Add a constant that makes the loss positive, or use "
            "max_loss_fraction=None."
        )
        self.warn("negative", text)
        return np.int32(0)


_recorders: weakref.WeakKeyDictionary[Any, _Recorder] = weakref.WeakKeyDictionary()


def _recorder(model: Model) -> _Recorder:
    return _recorders.setdefault(model, _Recorder(model.name))


def once(model: Model, topic: str, text: str) -> None:
    """Warns unless this model had a warning on the topic (traces may be repeated)."""
    _recorder(model).warn(topic, text)


def watch_shapes(model: Model, leaves: Sequence[Tensor]) -> None:
    """Warns once when a model was given examples of more than 8 shapes.

    XLA compiles the loop for each. Tracing sees every shape that it knows. Where Keras
    has relaxed a dimension to None, each batch calls Python to look at it.
    """
    recorder = _recorder(model)
    shapes = [leaf.shape[1:] for leaf in leaves]
    if all(shape.is_fully_defined() for shape in shapes):
        recorder.see_shape([d for shape in shapes for d in shape])
    else:
        shape = tf.concat([tf.shape(leaf)[1:] for leaf in leaves], 0)
        tf.numpy_function(recorder.see_shape, [shape], tf.int32)


def watch_negative(model: Model, counts: Variable) -> None:
    """Warns once when a loss was negative, which makes `max_loss_fraction` stop.

    Not where Keras compiles the whole step, which cannot call Python.

    Args:
        model: in training.
        counts: of `capped_share`, after a batch.
    """
    if model.jit_compile and not tf.executing_eagerly():
        return
    recorder = _recorder(model)
    recorder.loss_name = _loss_name(model)

    def warn() -> Any:
        return tf.numpy_function(recorder.see_negative, [], tf.int32)

    tf.cond(counts.value[2] > 0, warn, lambda: tf.constant(0))


def watch_groups(model: Model, group_size: int, num_examples: Tensor) -> None:
    """Warns once if groups of examples are not those that Keras would make.

    That is so if a batch is smaller than a group, or was not a multiple of it and yet
    another batch follows in the epoch, whose examples the loss tracker counts.
    """
    tracker = keras_model.loss_tracker(model)
    if tracker is None:
        return
    recorder = _recorder(model)
    seen = tf.cast(tf.convert_to_tensor(tracker.count.value), tf.int64)
    size = tf.cast(num_examples, tf.int64)
    too_small = tf.equal(seen, 0) & (size < group_size)
    uneven: Any = tf.where(too_small, size, seen)
    uneven = tf.where(size > 0, uneven, 0)  # nothing follows yet

    def warn() -> Any:
        arguments = [tf.constant(group_size), uneven]
        return tf.numpy_function(recorder.see_uneven, arguments, tf.int32)

    is_uneven = tf.not_equal(uneven % group_size, 0)
    tf.cond(is_uneven, warn, lambda: tf.constant(0))


def _loss_name(model: Model) -> str:
    # The `loss` of `compile`, as a message shows it.
    loss = getattr(model, "loss", None)
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None)
    return repr(loss if name is None else name)
