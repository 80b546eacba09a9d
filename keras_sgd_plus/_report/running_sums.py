"""Sums over the updates of an optimizer, in two variables that the loop carries.

The sums of losses, of the latest updates and of the first ones, tell whether a model
learns: Python reads them before some batches of `fit`, and when an epoch ends. The
search for a learning rate has the latest ones in windows of equal length. The
counts of capped steps give the share of them in the logs, since metrics were last
reset. Both are none of the optimizer's variables: nothing here is saved with it.
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
WINDOWS = 8  # of the latest updates, which begin when losses are last reset
# Rows of the sums of losses: the first updates; the windows; and the inverse of the
# length of a window, 0 where all is one, with the number of updates since the reset.
_ROWS = 1 + WINDOWS + 1


def _zeros(shape: tuple[int, ...], dtype: str, name: str) -> Variable:
    with private_tensorflow.plain_variables():  # each replica would have one of its own
        zeros = tf.zeros(shape, dtype)
        return keras.Variable(zeros, dtype=dtype, trainable=False, name=name)


_losses: PerObject[Any] = PerObject(lambda: _zeros((_ROWS, 3), "float64", "progress"))
_capped: PerObject[Any] = PerObject(lambda: _zeros((3,), "int64", "capped"))


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
    """The sums after one more update.

    Args:
        before: the sums before it.
        loss: () float, of the update. Of a loss of another shape it is the mean.
        iterations: () int64, the raw number of updates before it.
        applies: () bool, whether the update is made, or None where each one is.
    """
    loss = tf.reduce_mean(tf.cast(loss, before.dtype))
    inverse, seen = before[-1, 0], before[-1, 1]
    window = tf.minimum(tf.cast(seen * inverse, tf.int32), WINDOWS - 1)
    rows = tf.range(_ROWS)
    is_added = tf.equal(rows, window + 1)
    is_added |= tf.equal(rows, 0) & (iterations < FIRST)
    if applies is not None:
        is_added &= applies
    columns = tf.stack([tf.ones_like(loss), loss, loss * loss])
    # Zero times NaN is NaN, so there is a choice and no product.
    new = tf.where(is_added[:, None], columns, tf.zeros_like(columns))
    return before + new + _ONE_SEEN


_ONE_SEEN = np.zeros((_ROWS, 3))
_ONE_SEEN[-1, 1] = 1


def take_losses(optimizer: Optimizer) -> tuple[Losses, Losses]:
    """The losses since they were last taken, and those of the first updates.

    Sums begin anew each time: a difference of sums would lose what is small beside an
    earlier loss that was huge.
    """
    found = _losses.get(optimizer)
    if found is None:
        return NONE, NONE
    values = np.asarray(found.numpy())
    windows = values[1:-1].sum(axis=0).tolist()
    found.assign(np.concatenate([values[:1], np.zeros((WINDOWS, 3)), values[-1:]]))
    return Losses(*windows), Losses(*values[0].tolist())


def reset_losses(optimizer: Optimizer, num_updates: int | None = None) -> None:
    """Begins anew.

    Args:
        optimizer: the SGDPlus.
        num_updates: that follow, and are told in `WINDOWS` windows; None: in one.
    """
    if optimizer in _losses or num_updates is not None:
        zeros = np.zeros((_ROWS, 3))
        zeros[-1, 0] = 0 if num_updates is None else WINDOWS / num_updates
        _losses[optimizer].assign(zeros)


def windows_of_losses(optimizer: Optimizer) -> list[Losses]:
    """The losses in each of the windows since the reset."""
    values = np.asarray(_losses[optimizer].numpy())
    return [Losses(*row) for row in values[1:-1].tolist()]


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
