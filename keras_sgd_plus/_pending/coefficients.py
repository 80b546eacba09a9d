"""A kernel after some updates of rank one, as a sum over what it was made from.

With momentum m, learning rate s and a change d per example (the rate times the error of
the layer), the update of a kernel W with velocity V on an input x is

    W <- f W;   V <- m V - x d;   W <- W + V         f = 1 - s * weight decay
    (Nesterov:                    W <- W + m V - x d)

All of that is linear, so after j updates of a block the kernel and its velocity are

    W_j = p W + c V - X^T (a * D);   V_j = q V - X^T (u * D)

where X has the inputs of the block, (k, n), and D the changes, (k, m). This module has
the numbers p, c, q and the vectors a, u, (k,), in float64: they stand for many
roundings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._private.types import Tensor


class Coefficients(NamedTuple):
    """The coefficients after some updates; () for one that stays as it began."""

    weight: Any  # p, () float64: of W in W_j; () without decay
    carried: Any  # c, () float64: of V in W_j; () without momentum
    velocity: Any  # q, () float64: of V in V_j; () without momentum
    changes: Any  # a, (k,) float64: of the changes in W_j; () without both: all ones
    kicks: Any  # u, (k,) float64: of the changes in V_j; () without momentum


class Step(NamedTuple):
    """The properties of an update."""

    momentum: Any  # () float64, or None
    nesterov: bool
    factor: Any  # f, () float64, or None without decay


def start(zeros: Tensor, has_momentum: bool, has_decay: bool) -> Coefficients:
    """The coefficients before the first update of a block; zeros are (k,) float64."""
    one = tf.ones((), tf.float64)
    return Coefficients(
        one if has_decay else (),
        tf.zeros((), tf.float64) if has_momentum else (),
        one if has_momentum else (),
        zeros if has_momentum or has_decay else (),
        zeros if has_momentum else (),
    )


def advance(
    before: Coefficients, row: Tensor, step: Step, applies: Tensor
) -> Coefficients:
    """The coefficients after the update of one more example.

    Args:
        before: those before it.
        row: () int32, the example's row in the block.
        step: of the update.
        applies: () bool, or None if it surely does. Else nothing changes.
    """
    if isinstance(before.changes, tuple):
        return before
    size = before.changes.shape[0]
    own = tf.cast(tf.equal(tf.range(size), row), tf.float64)
    decayed = before if step.factor is None else _decayed(before, step.factor)
    if step.momentum is None:
        after = decayed._replace(changes=decayed.changes + own)
    else:
        m = step.momentum
        kicks, velocity = m * before.kicks + own, m * before.velocity
        moved = m * kicks + own if step.nesterov else kicks
        after = Coefficients(
            decayed.weight,
            decayed.carried + (m * velocity if step.nesterov else velocity),
            velocity,
            decayed.changes + moved,
            kicks,
        )
    if applies is None:
        return after
    choose = lambda new, old: tf.where(applies, new, old)  # noqa: E731
    return tf.nest.map_structure(choose, after, before)


def _decayed(before: Coefficients, factor: Tensor) -> Coefficients:
    carried = before.carried
    return before._replace(
        weight=factor * before.weight,
        carried=carried if isinstance(carried, tuple) else factor * carried,
        changes=factor * before.changes,
    )
