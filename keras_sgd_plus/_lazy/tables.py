"""Embedding tables of which an example touches a few rows: the rest is done later.

With momentum or weight decay every update moves every row. Here an update moves the
rows that its examples look up, each together with the updates that it has missed
(`table_rows`); the end of a batch brings all rows up to date. The result is that of
moving every row at once, up to rounding.

A table is what `keras.ops.take` looks up rows in, large enough to be worth it. While a
loop is traced, `take` asks `look_up`. Options that look at all of a table at each
update refuse it. One that is read in any other way has to be complete at each update:
then the loop is traced again with the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._forms import tracing
from keras_sgd_plus._forms.installation import is_installed
from keras_sgd_plus._lazy import table_rows
from keras_sgd_plus._lazy.table_rows import Table
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer, Tensor, Variable
from keras_sgd_plus._rule.gradient import Gradient, RowsGradient
from keras_sgd_plus._rule.part import Condition, Numbers, both
from keras_sgd_plus._rule.parts import VELOCITIES, exact_decay
from keras_sgd_plus._rule.rule import Rule


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


# Id of a variable -> None: it may wait; a text: it is updated as a whole, and the user
# is warned why; an empty text: as a whole, without a warning.
Reasons = dict[int, str | None]


@dataclass(frozen=True)
class Tables:
    """The tables of a model that are updated in parts.

    Attributes:
        optimizer: the SGDPlus.
        rule: its rule.
        weights: the variables of the rule; None for one that is not trained.
        places: of the tables.
        kinds: of the clocks.
        refusals: tables that are updated as a whole, and why.
        reasons: facts that earlier traces have found.
    """

    optimizer: Optimizer
    rule: Rule
    weights: Sequence[Variable | None]
    places: tuple[Place, ...]
    kinds: tuple[ClockKind, ...]
    refusals: tuple[tuple[Variable, str], ...]
    reasons: Mapping[int, str | None]

    def enter(
        self, num_updates: int | Tensor, numbers: Numbers
    ) -> EnteredTables | None:
        """Begins a batch of at most so many updates, () int32; None without tables."""
        if not self.places:
            return None
        return EnteredTables(self, self.new_clocks(num_updates, numbers), numbers)

    def new_reasons(
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

    def single(self, kind: ClockKind, numbers: Numbers, rate: Any) -> table_rows.Idle:
        """One update without a gradient, at a learning rate, () float."""
        decay = tf.constant(0.0, tf.float64)
        if kind.decays:
            decay = exact_decay(numbers, tf.cast(rate, kind.dtype))
        return table_rows.once(numbers["momentum"], self.rule.nesterov, decay)

    def new_clocks(
        self, num_updates: int | Tensor, numbers: Numbers
    ) -> list[table_rows.Clock]:
        """The clocks of a batch of at most so many updates, () int32."""
        is_scheduled = keras_optimizer.schedule(self.optimizer) is not None
        varies = is_scheduled or self.rule.varies_rate
        rate = None if varies else tf.convert_to_tensor(self.optimizer.learning_rate)
        return [
            table_rows.ScheduledDecay(num_updates)
            if kind.decays and varies
            else table_rows.ConstantDecay(self.single(kind, numbers, rate), num_updates)
            for kind in self.kinds
        ]


def plan_tables(
    optimizer: Optimizer,
    rule: Rule,
    slots: Mapping[str, Sequence[Variable | None]],
    model: Model,
    weights: Sequence[Variable | None],
    index_of: Callable[[Variable], int],
    reasons: Mapping[int, str | None],
) -> Tables:
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
    refusals: list[tuple[Variable, str]] = []
    kinds: list[ClockKind] = []
    places: list[Place] = []
    candidates = {id(v) for v in _embeddings(model)} | reasons.keys()
    if not is_installed("take"):
        candidates = set()  # lookups would pass by
    velocities = slots.get(VELOCITIES.name)
    for index, variable in enumerate(weights):
        if variable is None or id(variable) not in candidates:
            continue
        if not tracing.is_large(variable) or not _moves_all_rows(rule, index):
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
    columns = (tuple(places), tuple(kinds), tuple(refusals))
    return Tables(optimizer, rule, weights, *columns, reasons)


def _embeddings(model: Model) -> list[Variable]:
    embedding = keras.layers.Embedding
    layers = [e for e in keras_model.layers(model) if isinstance(e, embedding)]
    tables = [layer.embeddings for layer in layers if layer.built]
    return [v for v in tables if isinstance(v, keras.Variable)]  # not sums of LoRA


def _moves_all_rows(rule: Rule, index: int) -> bool:
    # Whether an update moves rows without a gradient.
    return rule.has_momentum or rule.decays(index)


_OTHERWISE = (
    "the model, a regularizer or a loss uses it in another way than by keras.ops.take"
)


class TableState(NamedTuple):
    """Tensors that the loop carries beside the values of variables."""

    clocks: list[Any]
    last: list[Tensor]  # per table, (rows,) int32: up to which update each row is done


@dataclass(frozen=True)
class EnteredTables:
    """The tables of a plan during one batch."""

    plan: Tables
    clocks: Sequence[table_rows.Clock]
    numbers: Numbers

    @property
    def start(self) -> TableState:
        """The state before the first update: no row is behind."""
        places = self.plan.places
        last = [tf.zeros((p.variable.shape[0],), tf.int32) for p in places]
        return TableState([clock.start() for clock in self.clocks], last)

    def show(self, values: Sequence[Tensor], state: TableState) -> ShownTables:
        """The tables for one update."""
        tables = tuple(
            Table(
                values[place.weight_position],
                None
                if place.velocity_position is None
                else values[place.velocity_position],
                last,
            )
            for place, last in zip(self.plan.places, state.last, strict=True)
        )
        placeholders = tuple(tf.identity(table.weight) for table in tables)
        return ShownTables(self, tables, tuple(state.clocks), placeholders)

    def finish(self, values: Sequence[Tensor], state: TableState) -> list[Tensor]:
        """The carry's values once all rows are up to date."""
        shown = self.show(values, state)
        tables = tuple(
            table_rows.finish(
                table, lambda last, k=k: shown.since(k, last), shown.number(k)
            )
            for k, table in enumerate(shown.tables)
        )
        return replace(shown, tables=tables).carried(values)


@dataclass(frozen=True)
class ShownTables:
    """The tables of a plan while one update is traced.

    Attributes:
        entered: the plan and its clocks.
        tables: as they are now.
        times: the states of the clocks.
        placeholders: the model sees these in place of stale tables. If it reads one
            other than by `take`, the loop is traced again with the whole table.
    """

    entered: EnteredTables
    tables: tuple[Table, ...]
    times: tuple[Any, ...]
    placeholders: tuple[Tensor, ...]

    @property
    def state(self) -> TableState:
        """Tensors that the loop carries from update to update."""
        return TableState(list(self.times), [table.last for table in self.tables])

    @property
    def weights(self) -> frozenset[int]:
        """Indices, among the weights of the rule, of the tables."""
        return frozenset(place.index for place in self._places)

    @property
    def positions(self) -> frozenset[int]:
        """Positions in the carry of the tables and their velocities."""
        found = [p.weight_position for p in self._places]
        found += [
            p.velocity_position for p in self._places if p.velocity_position is not None
        ]
        return frozenset(found)

    def placed(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The carry's values, with placeholders for the tables."""
        found = list(values)
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            found[place.weight_position] = placeholder
        return found

    def carried(self, values: Sequence[Any]) -> list[Tensor]:
        """The carry's values with the tables put in."""
        found = list(values)
        for place, table in zip(self._places, self.tables, strict=True):
            found[place.weight_position] = table.weight
            if place.velocity_position is not None:
                found[place.velocity_position] = table.velocity
        return found

    def look_up(self, scope: Any, variable: Variable, indices: Tensor) -> Tensor | None:
        """The rows as they are after all updates so far, (*indices.shape, width).

        None for what is no table, and inside a branch or loop of the model.
        """
        found = [k for k, p in enumerate(self._places) if p.variable is variable]
        if not found or not scope.is_here():
            return None
        (k,) = found
        num_rows, width = variable.shape
        ids = tf.cast(indices, tf.int64)
        ids = tf.where(ids < 0, ids + num_rows, ids)
        # An index out of range stays so, and fits in 32 bits.
        ids = tf.cast(tf.clip_by_value(ids, -1, num_rows), tf.int32)
        flat = table_rows.fetched(self.tables[k], tf.reshape(ids, (-1,)))
        found_rows = table_rows.read(
            self.tables[k], flat, lambda last: self.since(k, last)
        )
        found_rows = scope.leaf(variable, flat, found_rows)
        shape = tf.concat([tf.shape(ids), [width]], 0)
        if ids.shape.is_fully_defined():
            shape = [*ids.shape, width]
        # The dtype is that of an autocast scope.
        return tf.cast(tf.reshape(found_rows, shape), variable.dtype)

    def misread(self, scope: Any, gradients: Mapping[int, Gradient]) -> dict[str, Any]:
        """Tables that were read other than by rows, or have no gradient of rows.

        Asked before the step, and at the end of the update, when all reads are known.
        """
        found: Reasons = {}
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            variable, gradient = place.variable, gradients.get(place.index)
            is_assigned = scope.get_current_value(variable) is not placeholder
            if is_assigned or placeholder.consumers():
                found[id(variable)] = _OTHERWISE
            elif not isinstance(gradient, RowsGradient):
                found[id(variable)] = "" if gradient is None else _OTHERWISE
            elif 2 * (gradient.indices.shape[0] or 0) >= variable.shape[0]:
                found[id(variable)] = ""  # as much work in parts as on the whole
        return {"tables": found} if found else {}

    def step(
        self,
        gradients: Mapping[int, Any],
        rates: Sequence[Tensor],
        applies: Condition,
    ) -> ShownTables:
        """The tables after one update with these gradients, by index."""
        plan, numbers = self.entered.plan, self.entered.numbers
        rate = rates[plan.places[0].index]  # all have the same
        times = tuple(
            clock.advance(time, plan.single(kind, numbers, rate), applies)
            for clock, time, kind in zip(
                self.entered.clocks, self.times, plan.kinds, strict=True
            )
        )
        timed = replace(self, times=times)
        tables = tuple(
            _moved(timed, k, gradients[place.index], rates[place.index], applies)
            for k, place in enumerate(self._places)
        )
        return replace(timed, tables=tables)

    @property
    def _places(self) -> Sequence[Place]:
        return self.entered.plan.places

    def number(self, k: int) -> Tensor:
        """() int32: the updates so far, by the clock of table number k."""
        c = self._places[k].clock
        return self.entered.clocks[c].count(self.times[c])

    def since(self, k: int, last: Tensor) -> table_rows.Idle:
        """The updates of table k from number `last`, as columns of its type."""
        c = self._places[k].clock
        kind = self.entered.plan.kinds[c]
        found = self.entered.clocks[c].since(self.times[c], last)
        columns = table_rows.Idle(*(tf.cast(e, kind.dtype)[:, None] for e in found))
        weight = columns.weight if kind.decays else None
        return table_rows.Idle(weight, columns.carried, columns.velocity)


def _moved(
    shown: ShownTables,
    k: int,
    gradient: RowsGradient,
    rate: Tensor,
    applies: Tensor | None,
) -> Table:
    # Table number k after an update that the clocks have counted.
    plan, table = shown.entered.plan, shown.tables[k]
    values = tf.cast(gradient.values, table.weight.dtype)
    change = values * tf.cast(rate, values.dtype)
    # XLA takes the nearest row for an id out of range, and must not change it.
    ids = gradient.indices
    is_row = tf.logical_and(ids >= 0, ids < plan.places[k].variable.shape[0])
    may_move = both(is_row, applies)
    change = tf.where(may_move[:, None], change, tf.zeros_like(change))
    factor = tf.ones((), change.dtype)
    if plan.rule.nesterov:  # once by itself, and once in the velocity
        factor += tf.cast(shown.entered.numbers["momentum"], change.dtype)
    number = shown.number(k)
    return table_rows.move(
        table, ids, change, lambda last: shown.since(k, last), number, factor
    )
