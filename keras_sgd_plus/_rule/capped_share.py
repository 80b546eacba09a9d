"""The share of updates whose step was capped, since metrics were last reset.

The counts are a variable that the loop carries. They are none of the optimizer's
variables: nothing here is saved with it.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer, Structure, Tensor
from keras_sgd_plus._rule.part import Condition

# Weak, and not an attribute of the optimizer, which Keras's saver would walk.
_counts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def of(optimizer: Optimizer) -> Any:
    """The counts of an SGDPlus, (3,) int64 in a variable; None if it caps no steps.

    Updates that were capped, updates that were made, and those with a negative loss.
    Replicas add up their changes, as of all integers.
    """
    if optimizer.max_loss_fraction is None:
        return None
    if optimizer not in _counts:
        # Each replica would have one of its own.
        with private_tensorflow.plain_variables():
            _counts[optimizer] = keras.Variable(
                tf.zeros((3,), tf.int64), dtype="int64", trainable=False, name="capped"
            )
    return _counts[optimizer]


def variables(optimizer: Optimizer) -> list[Any]:
    """The variable with the counts, in a list that is empty if no steps are capped."""
    counts = of(optimizer)
    return [] if counts is None else [counts]


def counted(
    before: Tensor, capped: Condition, loss: Tensor, applies: Condition
) -> Tensor:
    """The counts, (3,) int64, after one more update, if that applies."""
    if capped is None:  # no weight had a gradient
        capped = tf.constant(False)
    new = tf.cast(tf.stack([capped, tf.constant(True), loss < 0]), before.dtype)
    if applies is not None:
        new = tf.where(applies, new, tf.zeros_like(new))
    return before + new


def with_share(logs: Structure, counts: Any) -> Any:
    """The logs with the share, () float32 from 0 to 1, under "capped"."""
    if counts is None or not isinstance(logs, dict):
        return logs
    capped, updates, _ = tf.unstack(tf.cast(counts.value, tf.float64))
    share = tf.math.divide_no_nan(capped, updates)
    return {**logs, "capped": tf.cast(share, tf.float32)}


def reset(optimizer: Optimizer) -> None:
    """Begins to count anew, as metrics do."""
    counts = _counts.get(optimizer)
    if counts is not None:
        counts.assign(tf.zeros((3,), tf.int64))
