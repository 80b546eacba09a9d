"""Which variables are embedding tables that can be updated in parts, and which are not.

A table is what `keras.ops.take` looks up rows in, large enough to be worth it, under
momentum or weight decay. Options that look at all of it at each update refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._lowering import is_installed, lookup
from keras_sgd_plus._pending import clocks
from keras_sgd_plus._pending.protocol import Reasons
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer, Tensor, Variable
from keras_sgd_plus._rule import (
    VELOCITIES,
    Gradient,
    Numbers,
    RowsGradient,
    Rule,
    exact_decay,
)


@dataclass(frozen=True)
class Place:
    """Where a table is: among the rule's weights, in the carry, among the clocks."""

    variable: Variable
    index: int
    weight_position: int
    velocity_position: int | None
    clock: int


@dataclass(frozen=True)
class ClockKind:
    """The properties that all tables of one clock share."""

    decays: bool
    dtype: str


@dataclass(frozen=True)
class TablePlan:
    """The tables of a model that are updated in parts.

    Attributes:
        optimizer: the SGDPlus.
        rule: its rule.
        weights: the variables of the rule; None for one that is not trained.
        nesterov: of the rule.
        places: of the tables.
        kinds: of the clocks.
        refusals: tables that are updated as a whole, and why.
        reasons: facts that earlier traces have found.
    """

    optimizer: Optimizer
    rule: Rule
    weights: Sequence[Any]
    nesterov: bool
    places: tuple[Place, ...]
    kinds: tuple[ClockKind, ...]
    refusals: tuple[tuple[Any, str], ...]
    reasons: Mapping[int, str | None]

    def new_tables(
        self, looked_up: Collection[int], gradients: Mapping[int, Gradient]
    ) -> Reasons:
        """Variables that turn out to be tables, with no reason against them.

        Args:
            looked_up: ids of variables in which rows were looked up, other than tables.
            gradients: by the weight's index.
        """
        new: Reasons = {}
        for index, gradient in gradients.items():
            known = id(self.weights[index])
            is_new = known in looked_up and known not in self.reasons
            if is_new and isinstance(gradient, RowsGradient):
                waits = self.rule.needs_all_of(index) is None
                if waits and _moves_all_rows(self.rule, index):
                    new[known] = None
        return new

    def warning(self) -> str | None:
        """A warning of tables that are updated as a whole, or None."""
        if not self.refusals:
            return None
        named = "; ".join(
            f"{v.path} of shape {tuple(v.shape)}, because {reason}"
            for v, reason in self.refusals
        )
        return (
            "With momentum or weight decay, SGDPlus moves only the rows of an "
            "embedding table that an example looks up, and the others later. Received: "
            f"{named}. So every update moves all of its rows, which is correct, but "
            "slow for a large table. Remove that cause if the table is large."
        )

    def single(self, kind: ClockKind, numbers: Numbers, rate: Tensor) -> clocks.Idle:
        """One update without a gradient, at a learning rate, () float."""
        decay = tf.constant(0.0, tf.float64)
        if kind.decays:
            decay = exact_decay(numbers, tf.cast(rate, kind.dtype))
        return clocks.once(numbers["momentum"], self.nesterov, decay)

    def new_clocks(self, num_updates: Tensor, numbers: Numbers) -> list[clocks.Clock]:
        """The clocks of a batch of at most so many updates, () int32."""
        is_scheduled = keras_optimizer.schedule(self.optimizer) is not None
        varies = is_scheduled or self.rule.varies_rate
        rate = None if varies else tf.convert_to_tensor(self.optimizer.learning_rate)
        return [
            clocks.ScheduledDecay(num_updates)
            if kind.decays and varies
            else clocks.ConstantDecay(self.single(kind, numbers, rate), num_updates)
            for kind in self.kinds
        ]


def plan_tables(
    optimizer: Optimizer,
    rule: Rule,
    slots: Mapping[str, Sequence[Any]],
    model: Model,
    weights: Sequence[Any],
    index_of: Callable[[Any], int],
    reasons: Mapping[int, str | None],
) -> TablePlan:
    """Finds the tables of a model.

    Args:
        optimizer: the SGDPlus.
        rule: its rule.
        slots: the variables of the rule's state, by slot, then by weight.
        model: whose embedding layers are looked at.
        weights: the variables of the rule; None for one that is not trained.
        index_of: the position of a variable in the carry.
        reasons: facts that earlier traces have found, by id of the variable.
    """
    refusals: list[tuple[Any, str]] = []
    kinds: list[ClockKind] = []
    places: list[Place] = []
    candidates = {id(v) for v in _embeddings(model)} | reasons.keys()
    if not is_installed("take"):
        candidates = set()  # lookups would pass by
    velocities = slots.get(VELOCITIES.name)
    for index, variable in enumerate(weights):
        if variable is None or id(variable) not in candidates:
            continue
        if not lookup.is_large(variable) or not _moves_all_rows(rule, index):
            continue
        found = reasons.get(id(variable))
        reason = found if found is not None else rule.needs_all_of(index)
        if reason is not None:
            if reason:  # an empty reason is no cost to the user
                refusals.append((variable, reason))
            continue
        kind = ClockKind(rule.decays(index), variable.dtype)
        if kind not in kinds:
            kinds.append(kind)
        velocity = None if velocities is None else index_of(velocities[index])
        position = index_of(variable)
        places.append(Place(variable, index, position, velocity, kinds.index(kind)))
    return TablePlan(
        optimizer,
        rule,
        weights,
        nesterov=rule.nesterov,
        places=tuple(places),
        kinds=tuple(kinds),
        refusals=tuple(refusals),
        reasons=reasons,
    )


def _embeddings(model: Model) -> list[Any]:
    embedding = keras.layers.Embedding
    layers = [e for e in keras_model.layers(model) if isinstance(e, embedding)]
    tables = [layer.embeddings for layer in layers if layer.built]
    return [v for v in tables if isinstance(v, keras.Variable)]  # not sums of LoRA


def _moves_all_rows(rule: Rule, index: int) -> bool:
    # Whether an update moves rows without a gradient.
    return rule.has_momentum or rule.decays(index)
