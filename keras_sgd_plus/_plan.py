"""Which variables are embedding tables that can be moved in parts, and which are not.

A table is what `keras.ops.take` looks up rows in, large enough to be worth it, under
momentum or weight decay. Options that look at all of it at each update refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus import _idle, _keras
from keras_sgd_plus._state import Carry, Slots

MIN_ENTRIES = 8_192  # of a table; smaller ones are moved as a whole


class Replan(Exception):
    """A trace found tables that have to be moved as a whole, or need not be.

    Args:
        reasons: per variable why it must be whole; None where it may be in parts.
    """

    def __init__(self, reasons: dict[int, str | None]) -> None:
        super().__init__()
        self.reasons = reasons


class State(NamedTuple):
    """What the loop carries beside the values of variables."""

    clocks: list[Any]
    last: list[Any]  # per table, (rows,) int32: up to which update each row is done


@dataclass(frozen=True)
class Place:
    """Where a table is: positions among the slots, in the carry, among the clocks."""

    variable: Any
    slot: int
    weight: int
    velocity: int | None
    clock: int


class Plan:
    """Which variables of a carry are moved in parts, and by which clocks.

    Args:
        carry: the variables.
        slots: those of the update rule.
        model: whose embedding layers are looked at.
        known: what earlier traces have found, by id of the variable: why it must be
            whole, or None where it may be in parts.
    """

    def __init__(
        self, carry: Carry, slots: Slots, model: Any, known: dict[int, str | None]
    ) -> None:
        rule = slots.rule
        self.slots, self.known = slots, known
        self.refusals: list[tuple[Any, str]] = []  # tables that cost their size
        trainable = {id(v) for v in carry.trainable}
        kinds: list[tuple[bool, str]] = []  # whether weights decay, type; per clock
        self.places: list[Place] = []
        tables = {id(v) for v in _embeddings(model)}
        for slot, variable in enumerate(slots.weights):
            if id(variable) not in trainable or not is_large(variable):
                continue
            if id(variable) not in tables | known.keys() or not _moves(rule, slot):
                continue
            found = known.get(id(variable))
            reason = found if found is not None else _refusal(rule, slot, variable)
            if reason is not None:
                if reason:
                    self.refusals.append((variable, reason))
                continue
            kind = (rule.decay(slot) is not None, variable.dtype)
            if kind not in kinds:
                kinds.append(kind)
            velocity = slots.velocities[slot]
            self.places.append(
                Place(
                    variable,
                    slot,
                    carry.index(variable),
                    None if velocity is None else carry.index(velocity),
                    kinds.index(kind),
                )
            )
        self.kinds = kinds

    def welcome(self, taken: dict[int, Any], gradients: dict[int, Any]) -> None:
        """Raises `Replan` for variables that turn out to be tables.

        Args:
            taken: the variables that were looked up and are no tables, by id.
            gradients: by slot.
        """
        rule, new = self.slots.rule, {}
        for slot, gradient in gradients.items():
            variable = self.slots.weights[slot]
            is_new = id(variable) in taken and id(variable) not in self.known
            if is_new and isinstance(gradient, tf.IndexedSlices):
                if _moves(rule, slot) and _refusal(rule, slot, variable) is None:
                    new[id(variable)] = None
        if new:
            raise Replan(new)

    def warning(self) -> str | None:
        """What to say of tables that are moved as a whole, if there are any."""
        if not self.refusals:
            return None
        named = "; ".join(
            f"{v.path} of shape {tuple(v.shape)}, because {reason}"
            for v, reason in self.refusals
        )
        return (
            "With momentum or weight decay, SGDPlus moves only the rows of an "
            f"embedding table that an example looks up, and the rest later. Received: "
            f"{named}. So every update moves all of its rows, which is correct, and "
            "takes time in proportion to them. Leave that out if the table is large."
        )

    def single(self, kind: tuple[bool, str]) -> _idle.Idle:
        """One idle update of a clock, at the learning rate of now."""
        rule, optimizer = self.slots.rule, self.slots.optimizer
        decays, dtype = kind
        decay = tf.constant(0.0, tf.float64)
        if decays:
            # The numbers that the update rule multiplies, rounded as there.
            rate = tf.cast(tf.convert_to_tensor(optimizer.learning_rate), dtype)
            amount = tf.cast(
                tf.constant(rule.weight_decay or 0.0, tf.float32), tf.float64
            )
            decay = tf.cast(rate, tf.float64) * amount
        return _idle.once(rule.momentum, rule.nesterov, decay)

    def clocks(self, num_updates: Any) -> list[Any]:
        """The clocks of a batch of at most so many updates, () int32."""
        schedule, *_ = self.slots.optimizer.loop_settings()
        return [
            _idle.Changing(num_updates)
            if kind[0] and schedule is not None
            else _idle.Steady(self.single(kind), num_updates)
            for kind in self.kinds
        ]

    def start(self, clocks: Sequence[Any]) -> State:
        """The state before a batch: nothing is behind."""
        last = [tf.zeros((p.variable.shape[0],), tf.int32) for p in self.places]
        return State([clock.start() for clock in clocks], last)


def _embeddings(model: Any) -> list[Any]:
    layers = [e for e in _keras.layers(model) if isinstance(e, keras.layers.Embedding)]
    tables = [layer.embeddings for layer in layers if layer.built]
    return [v for v in tables if isinstance(v, keras.Variable)]  # not sums of LoRA


def is_large(variable: Any) -> bool:
    """Whether a variable has the size and shape of a table."""
    shape = variable.shape
    return len(shape) == 2 and shape[0] * shape[1] >= MIN_ENTRIES


def _moves(rule: Any, slot: int) -> bool:
    # Whether an update moves rows without a gradient.
    return bool(rule.momentum) or rule.decay(slot) is not None


def _refusal(rule: Any, slot: int, variable: Any) -> str | None:
    if rule.use_ema:
        return "use_ema=True averages all of it"
    if rule.accumulation_steps:
        return "gradient_accumulation_steps adds up gradients of all of it"
    if rule.constraints[slot] is not None:
        return "a constraint looks at all of it"
    if rule.overwrites[slot] or variable.dtype not in ("float32", "float64"):
        return f"its type, {variable.dtype}, is rounded at each update"
    return None
