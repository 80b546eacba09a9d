"""Learning-rate schedules that end before the first epoch does.

A schedule counts updates. Recipes count batches, and here an update is an example, so
a schedule that was meant for a whole run may end in its first minutes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import optimizers

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer

_NOTHING = 0.01  # part of the first rate at which a decay without end counts as ended


class Length(NamedTuple):
    """The length of a schedule.

    Attributes:
        updates: after how many it has ended, or its first period has.
        arguments: those that count updates, by name: an int, or a list of them.
        is_whole: whether `decay_steps` alone is that length.
    """

    updates: float
    arguments: dict[str, Any]
    is_whole: bool = False


def length(schedule: Any) -> Length | None:
    """The length of one of Keras's schedules; None if it has none, or is another's."""
    kinds = optimizers.schedules
    if isinstance(schedule, kinds.PiecewiseConstantDecay):
        boundaries = [float(b) for b in schedule.boundaries]
        return (
            Length(boundaries[-1], {"boundaries": boundaries}) if boundaries else None
        )
    if isinstance(schedule, kinds.CosineDecayRestarts):
        first = schedule.first_decay_steps
        return Length(first, {"first_decay_steps": first})
    steps: Any = getattr(schedule, "decay_steps", None)
    if isinstance(schedule, kinds.CosineDecay):
        if schedule.warmup_target is None or not schedule.warmup_steps:
            return Length(steps, {"decay_steps": steps}, is_whole=True)
        warmup = schedule.warmup_steps
        arguments = {"decay_steps": steps, "warmup_steps": warmup}
        return Length(steps + warmup, arguments)
    if isinstance(schedule, kinds.PolynomialDecay):
        return Length(steps, {"decay_steps": steps}, is_whole=True)
    if isinstance(schedule, kinds.ExponentialDecay):
        rate = float(schedule.decay_rate)
        if not 0 < rate < 1:
            return None
        return Length(steps * math.log(_NOTHING, rate), {"decay_steps": steps})
    if isinstance(schedule, kinds.InverseTimeDecay):
        rate = float(schedule.decay_rate)
        if rate <= 0:
            return None
        return Length(steps * (1 / _NOTHING - 1) / rate, {"decay_steps": steps})
    return None


def report(optimizer: Optimizer, updates: int, epochs: int) -> str | None:
    """The warning for a schedule that ended within the first epoch, or None.

    Args:
        optimizer: the SGDPlus, which was new.
        updates: made in the first epoch, as a schedule counts them: raw.
        epochs: that `fit` was to make.
    """
    schedule = keras_optimizer.schedule(optimizer)
    found = length(schedule)
    if found is None or found.updates >= updates:
        return None
    given = ", ".join(f"{k}={_shown(v)}" for k, v in found.arguments.items())
    unit = "one per example"
    if optimizer.examples_per_update > 1:
        unit = f"one per {optimizer.examples_per_update} examples"
    every = updates * epochs
    made = f"An epoch of this fit makes {updates} updates, the whole fit {every}."
    advice = f"Give {' and '.join(found.arguments)} in updates."
    if found.is_whole:
        advice = f"For a decay over the whole fit use decay_steps={every}."
    return (
        "A learning-rate schedule should last longer than the first epoch. Received: "
        f"{type(schedule).__name__}({given}), which counts updates, {unit}. It ended "
        f"after {math.ceil(found.updates)} of the {updates} updates of the first "
        f"epoch. {made} {advice}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return f"{value:.12g}"
