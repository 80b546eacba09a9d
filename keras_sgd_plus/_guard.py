"""What a group that is not finite may change: nothing but counters and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _keras, _update
from keras_sgd_plus._nonfinite import NONE, Faults


class Guard:
    """Chooses, per variable, between its values before and after one update.

    Under "skip" the raw counter and the seeds go on, so what comes later does not
    depend on what was skipped. Under "raise" they stay, and so does all that follows.

    Args:
        slots: the `Slots` of the optimizer.
        cause: () int32, of `_nonfinite.first_cause`.
        faults: of the batch so far.
        raises: whether nothing changes any more after the first fault.
    """

    def __init__(self, slots: Any, cause: Any, faults: Faults, raises: bool) -> None:
        self.slots, self.raises, self.started = slots, raises, faults.started
        is_over = tf.logical_and(raises, faults.count > 0)
        self.cause = tf.where(is_over, NONE, cause)
        self.bad = tf.logical_or(is_over, cause != NONE)
        self.is_held = self.bad  # what the update rule changes
        self._at_rule: list[int] = []  # ids of the values it began with

    def gradients(self, gradients: Sequence[Any], state: Any) -> list[Any]:
        """Gradients that are zero in a bad group, where a choice comes too late.

        Args:
            gradients: per variable, or None.
            state: of the update rule, before the update.

        A choice between two tables copies them, so nothing is scattered into one. And
        under gradient accumulation a bad group adds nothing, but the step at the end
        of its window is made if others have added something.
        """
        rule = self.slots.rule
        self._at_rule = [id(v) for values in state[:4] for v in values]
        accumulates = rule.accumulation_steps is not None
        if accumulates and not self.raises:
            ends = tf.equal((state.iterations + 1) % rule.accumulation_steps, 0)
            sums = [tf.reduce_any(a != 0) for a in state.accumulators if a is not None]
            steps = tf.logical_and(ends, tf.reduce_any(tf.stack(sums)))
            self.is_held = tf.logical_and(self.bad, tf.logical_not(steps))
        if rule.use_ema:
            applied = tf.logical_not(self.is_held)
            self.started = tf.logical_or(self.started, applied)
        return [
            self._masked(g) if accumulates or isinstance(g, tf.IndexedSlices) else g
            for g in gradients
        ]

    def choose(
        self, variables: Sequence[Any], new: Sequence[Any], old: Sequence[Any]
    ) -> list[Any]:
        """The values to go on with, per variable of the carry.

        The update rule has chosen its own by `is_held`, unless the model assigned to
        them before.
        """
        of_rule = {id(v) for column in self.slots.columns for v in column}
        chosen = []
        for variable, after, before in zip(variables, new, old, strict=True):
            if after is before:
                pass
            elif id(variable) in of_rule and id(before) in self._at_rule:
                pass
            elif not self.raises and variable is self.slots.iterations:
                after = tf.where(self.bad, before + 1, after)
            elif self.raises or not _keras.is_seed(variable):
                after = tf.where(self.bad, before, after)
            chosen.append(after)
        return chosen

    def logs(self, new: Any, old: Any) -> Any:
        """The logs to go on with: those of the last group that counted."""
        return tf.nest.map_structure(lambda a, b: tf.where(self.bad, b, a), new, old)

    def _masked(self, gradient: Any) -> Any:
        if gradient is None:
            return None
        return _update.entrywise(
            gradient, lambda v: tf.where(self.bad, tf.zeros_like(v), v)
        )
