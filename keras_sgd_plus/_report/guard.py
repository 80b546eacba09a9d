"""Groups of examples that are not finite, in the loop: found, listed, kept from harm.

Each update asks for the cause of its group (`first_cause`), an int32: `NONE`, `LOSS`,
or 1 + the position of a variable among the trainable ones, whose gradient is not
finite. The loop lists the bad groups of a batch (`Skips`), for the ledger that
remembers them, and a `Guard` keeps each from changing anything but counters and seeds.
Under nonfinite="propagate" the loop has none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Structure, Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient, RowsGradient
from keras_sgd_plus._rule.part import State, select, window_ends
from keras_sgd_plus._rule.parts import ACCUMULATORS, Accumulate
from keras_sgd_plus._rule.rule import Rule

NONE, LOSS = -1, 0
NO_POSITION = -1  # fills up the positions of a group that is shorter than others


class Skips(NamedTuple):
    """The bad groups of one batch so far; a part of the loop's carry."""

    count: Tensor  # () int32, groups
    rows: Tensor  # (rows, 1 + k) int32: cause and positions of each, in order of visit


def no_skips(num_rows: int | Tensor, group_size: int, skip_all: Tensor) -> Skips:
    """The list before the first group.

    Args:
        num_rows: () int32, more than the groups that can be listed.
        group_size: k.
        skip_all: () bool, whether an earlier batch ended training. The list then begins
            with one group.
    """
    shape = tf.stack([num_rows, 1 + group_size])
    rows = tf.fill(shape, NO_POSITION)
    return Skips(tf.cast(skip_all, tf.int32), rows)


def with_group(skips: Skips, cause: Tensor, positions: Tensor) -> Skips:
    """The list with one more group, if that has a cause.

    The row is always written, and kept only if the count moves on: cheaper than a
    choice between two whole tables.
    """
    width: Any = skips.rows.shape[1]
    missing = width - 1 - tf.shape(positions)[0]
    row = tf.concat([[cause], positions, tf.fill([missing], NO_POSITION)], 0)
    row = tf.reshape(row, (1, width))
    rows = tf.tensor_scatter_nd_update(skips.rows, [[skips.count]], row)
    count = skips.count + tf.cast(cause != NONE, tf.int32)
    return Skips(count, rows)


def first_cause(loss: Tensor, gradients: Sequence[Gradient | None]) -> Tensor:
    """() int32, the cause: the loss, or the first gradient that is not finite.

    Args:
        loss: () float.
        gradients: in the order of the trainable variables.
    """
    cause = tf.constant(NONE)
    for i, gradient in reversed(list(enumerate(gradients))):
        if gradient is not None:
            cause = tf.where(gradient.all_finite(), cause, i + 1)
    return tf.where(tf.math.is_finite(loss), cause, LOSS)


@dataclass(frozen=True)
class Guard:
    """Chooses, per variable, between its values before and after one update.

    Under "skip" the raw counter and the seeds go on, so what comes later does not
    depend on what was skipped. Under "raise" they stay, and so does all that follows.

    Attributes:
        raises: whether nothing changes any more after the first bad group.
        cause: () int32, of `first_cause`.
        skip: () bool, whether the group must change nothing.
    """

    raises: bool
    cause: Tensor
    skip: Tensor

    @classmethod
    def of(cls, cause: Tensor, skips: Skips, raises: bool) -> Guard:
        """The guard of one update.

        Args:
            cause: () int32, of `first_cause`.
            skips: of the batch so far.
            raises: as for the class.
        """
        is_over = tf.logical_and(raises, skips.count > 0)
        found = tf.where(is_over, NONE, cause)
        skip = tf.logical_or(is_over, cause != NONE)
        return cls(raises, found, skip)

    def may_change(self, rule: Rule, state: State) -> Tensor:
        """() bool: whether the rule may change more than the counter.

        Under gradient accumulation a bad group adds nothing, but the step at the end of
        its window is made if others have added something.

        Args:
            rule: the rule.
            state: its state before the update.
        """
        accumulate = rule.find(Accumulate)
        if accumulate is None or self.raises:
            return tf.logical_not(self.skip)
        ends = window_ends(state.iterations, accumulate.steps)
        found = state.slots[ACCUMULATORS.name]
        sums = [tf.reduce_any(a != 0) for a in found if a is not None]
        steps = tf.logical_and(ends, tf.reduce_any(tf.stack(sums)))
        skips_all = tf.logical_and(self.skip, tf.logical_not(steps))
        return tf.logical_not(skips_all)

    def gradients(
        self, rule: Rule, gradients: Mapping[int, Gradient]
    ) -> dict[int, Gradient]:
        """Gradients that are zero in a bad group, where a choice comes too late.

        A choice between two tables would copy them, so zeros are scattered into one.
        """
        accumulates = rule.find(Accumulate) is not None
        return {
            i: g.entrywise(lambda v: tf.where(self.skip, tf.zeros_like(v), v))
            if accumulates or isinstance(g, RowsGradient)
            else g
            for i, g in gradients.items()
        }

    def choose(
        self,
        variables: Sequence[Variable],
        new: Sequence[Tensor],
        old: Sequence[Tensor],
        counter: Variable,
        chosen: Collection[int],
    ) -> list[Tensor]:
        """The values to go on with, per variable of the carry.

        Args:
            variables: those of the carry.
            new: their values after the update.
            old: their values before it.
            counter: the raw counter of updates.
            chosen: positions of those between whose values the rule has chosen.
        """
        found = []
        for i, (variable, after, before) in enumerate(
            zip(variables, new, old, strict=True)
        ):
            if after is before or i in chosen:
                pass
            elif not self.raises and variable is counter:
                after = tf.where(self.skip, before + 1, after)
            elif self.raises or not keras_optimizer.is_seed(variable):
                after = tf.where(self.skip, before, after)
            found.append(after)
        return found

    def logs(self, new: Structure, old: Structure) -> Structure:
        """The logs to go on with: those of the last group that counted."""
        return tf.nest.map_structure(lambda a, b: select(self.skip, b, a), new, old)
