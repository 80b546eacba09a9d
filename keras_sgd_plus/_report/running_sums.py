"""Sums of the losses of an optimizer's updates: of the latest, and of the first ones.

They are a variable that the loop carries. It is none of the optimizer's variables:
nothing here is saved with it. Python reads it before some batches of `fit`, and when an
epoch ends.

The share of updates whose step was capped, since metrics were last reset.

The counts are a variable that the loop carries. They are none of the optimizer's
variables: nothing here is saved with it.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer, Structure, Tensor
from keras_sgd_plus._rule.part import Condition

FIRST = 100  # updates whose losses are summed apart

# Weak, and not an attribute of the optimizer, which Keras's saver would walk.
_sums: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Losses(NamedTuple):
    """The losses of some updates: their number, sum, and sum of squares."""

    count: float
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Their variance, at least 0 in spite of rounding."""
        return max(0.0, self.squares / self.count - self.mean * self.mean)

    def plus(self, others: Losses) -> Losses:
        """Those of these updates and of others."""
        return Losses(*(a + b for a, b in zip(self, others, strict=True)))

    def is_above(self, other: Losses) -> bool:
        """Whether the mean is above another by more than two standard errors.

        Both have the larger variance: a hundred losses may happen to be all alike. Of
        means and variances that are not finite nothing is said.
        """
        variance = max(self.variance, other.variance)
        if not math.isfinite(self.mean + variance):
            return False
        error = math.sqrt(variance * (1 / self.count + 1 / other.count))
        return self.mean - other.mean > 2 * error


NONE = Losses(0, 0, 0)


def losses_of(optimizer: Optimizer) -> Any:
    """The sums of an SGDPlus, (6,) float64 in a variable."""
    if optimizer not in _sums:
        # Each replica would have one of its own.
        with private_tensorflow.plain_variables():
            _sums[optimizer] = keras.Variable(
                tf.zeros((6,), tf.float64),
                dtype="float64",
                trainable=False,
                name="progress",
            )
    return _sums[optimizer]


def progress_of(optimizer: Optimizer) -> Any:
    """The same; None with several replicas, whose averages are no sums."""
    return None if replicas.num_replicas() > 1 else losses_of(optimizer)


def with_loss(before: Tensor, loss: Tensor, iterations: Tensor, applies: Any) -> Any:
    """The sums, (6,) float64, after one more update.

    Args:
        before: the sums before it.
        loss: () float, of the update. Of a loss of another shape it is the mean.
        iterations: () int64, the raw number of updates before it.
        applies: () bool, whether the update is made, or None where each one is.
    """
    loss = tf.reduce_mean(tf.cast(loss, before.dtype))
    is_first = tf.cast(iterations < FIRST, before.dtype)
    columns = [tf.ones_like(loss), loss, loss * loss]
    new = tf.stack([*columns, *(is_first * each for each in columns)])
    if applies is not None:  # zero times NaN is NaN
        new = tf.where(applies, new, tf.zeros_like(new))
    return before + new


def take_losses(optimizer: Optimizer) -> tuple[Losses, Losses]:
    """The losses since they were last taken, and those of the first updates.

    Sums begin anew each time: a difference of sums would lose what is small beside an
    earlier loss that was huge.
    """
    found = _sums.get(optimizer)
    if found is None:
        return NONE, NONE
    values = np.asarray(found.numpy())
    found.assign(np.concatenate([np.zeros(3), values[3:]]))
    latest, first = values[:3].tolist(), values[3:].tolist()
    return Losses(*latest), Losses(*first)


def reset_losses(optimizer: Optimizer) -> None:
    """Begins anew, with an optimizer that has made no update."""
    found = _sums.get(optimizer)
    if found is not None:
        found.assign(tf.zeros((6,), tf.float64))


# Weak, and not an attribute of the optimizer, which Keras's saver would walk.
_counts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def capped_of(optimizer: Optimizer) -> Any:
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


def capped_variables(optimizer: Optimizer) -> list[Any]:
    """The variable with the counts, in a list that is empty if no steps are capped."""
    counts = capped_of(optimizer)
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


def reset_capped(optimizer: Optimizer) -> None:
    """Begins to count anew, as metrics do."""
    counts = _counts.get(optimizer)
    if counts is not None:
        counts.assign(tf.zeros((3,), tf.int64))
