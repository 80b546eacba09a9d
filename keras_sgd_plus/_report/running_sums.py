"""Sums over the updates of an optimizer, in two variables that the loop carries.

The sums of losses, of the latest updates and of the first ones, tell whether a model
learns: Python reads them before some batches of `fit`, and when an epoch ends. The
search for a learning rate takes them, too. The counts of capped steps give the share of
them in the logs, since metrics were last reset. Both are none of the optimizer's
variables: nothing here is saved with it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import (
    Optimizer,
    PerObject,
    Structure,
    Tensor,
    Variable,
)
from keras_sgd_plus._rule.part import Condition

FIRST = 100  # updates whose losses are summed apart


def _zeros(size: int, dtype: str, name: str) -> Variable:
    with private_tensorflow.plain_variables():  # each replica would have one of its own
        zeros = tf.zeros((size,), dtype)
        return keras.Variable(zeros, dtype=dtype, trainable=False, name=name)


_losses: PerObject[Any] = PerObject(lambda: _zeros(6, "float64", "progress"))
_capped: PerObject[Any] = PerObject(lambda: _zeros(3, "int64", "capped"))


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

    def plus(self, other: Losses) -> Losses:
        """Those of these updates and of others."""
        return Losses(*(a + b for a, b in zip(self, other, strict=True)))

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


def losses_of(optimizer: Optimizer) -> Variable | None:
    """The sums of an SGDPlus, float64 in a variable; None with several replicas.

    The average that replicas make of floats is no sum.
    """
    return _losses[optimizer] if replicas.current().add_up_sums else None


def with_loss(
    before: Tensor, loss: Tensor, iterations: Tensor, applies: Tensor | None
) -> Tensor:
    """The sums, (6,) float64, after one more update.

    A model of few weights is updated within 25 ns, so each number here counts.

    Args:
        before: the sums before it.
        loss: () float, of the update. Of a loss of another shape it is the mean.
        iterations: () int64, the raw number of updates before it.
        applies: () bool, whether the update is made, or None where each one is.
    """
    loss = tf.reduce_mean(tf.cast(loss, before.dtype))
    columns = [tf.ones_like(loss), loss, loss * loss]
    # Zero times NaN is NaN, so there is a choice and no product.
    is_first = iterations < FIRST
    first = [tf.where(is_first, each, tf.zeros_like(each)) for each in columns]
    new = tf.stack([*columns, *first])
    if applies is not None:
        new = tf.where(applies, new, tf.zeros_like(new))
    return before + new


def take_losses(optimizer: Optimizer) -> tuple[Losses, Losses]:
    """The losses since they were last taken, and those of the first updates.

    Sums begin anew each time: a difference of sums would lose what is small beside an
    earlier loss that was huge.
    """
    found = _losses.get(optimizer)
    if found is None:
        return NONE, NONE
    values = np.asarray(found.numpy())
    found.assign(np.concatenate([np.zeros(3), values[3:]]))
    latest, first = values[:3].tolist(), values[3:].tolist()
    return Losses(*latest), Losses(*first)


def reset_losses(optimizer: Optimizer) -> None:
    """Begins anew."""
    if optimizer in _losses:
        _losses[optimizer].assign(tf.zeros((6,), tf.float64))


def capped_of(optimizer: Optimizer) -> Variable | None:
    """The counts of an SGDPlus, (3,) int64 in a variable; None if it caps no steps.

    Updates that were capped, updates that were made, and those with a negative loss.
    Replicas add up their changes, as of all integers.
    """
    return None if optimizer.max_loss_fraction is None else _capped[optimizer]


def carried(optimizer: Optimizer) -> list[Variable]:
    """The variables that the loop carries for an SGDPlus."""
    both = capped_of(optimizer), losses_of(optimizer)
    return [variable for variable in both if variable is not None]


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


def with_share(logs: Structure, counts: Variable | None) -> Structure:
    """The logs with the share, () float32 from 0 to 1, under "capped"."""
    if counts is None or not isinstance(logs, dict):
        return logs
    capped, updates, _ = tf.unstack(tf.cast(counts.value, tf.float64))
    share = tf.math.divide_no_nan(capped, updates)
    return {**logs, "capped": tf.cast(share, tf.float32)}


def reset_capped(optimizer: Optimizer) -> None:
    """Begins to count anew, as metrics do."""
    if optimizer in _capped:
        _capped[optimizer].assign(tf.zeros((3,), tf.int64))
