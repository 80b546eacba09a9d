"""Embedding tables of which an example touches a few rows: the rest is done later.

With momentum or weight decay every update moves every row. Here an update moves the
rows that its examples look up, each together with the updates that it has missed
(`clocks`); the end of a batch brings all rows up to date. The result is that of moving
every row at once, up to rounding.

Looking rows up goes through `keras.ops.take`, which asks `look_up` while a loop is
traced. A table that is read in any other way has to be complete at each update: then
the loop is traced again with the whole table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus._pending import clocks, rows
from keras_sgd_plus._pending.plan import TablePlan
from keras_sgd_plus._pending.protocol import Misread, Reader, Reasons
from keras_sgd_plus._pending.rows import Table
from keras_sgd_plus._private.types import Tensor, Variable
from keras_sgd_plus._rule import Gradient, Numbers, RowsGradient, both

_OTHERWISE = (
    "the model, a regularizer or a loss uses it in another way than by keras.ops.take"
)


class TableState(NamedTuple):
    """Tensors that the loop carries beside the values of variables."""

    clocks: list[Any]
    last: list[Tensor]  # per table, (rows,) int32: up to which update each row is done


@dataclass(frozen=True)
class Tables:
    """The tables of a model that are updated in parts (`protocol.Pending`)."""

    plan: TablePlan

    def enter(
        self, values: Sequence[Tensor], num_updates: Tensor, numbers: Numbers
    ) -> EnteredTables | None:
        """As `protocol.Pending.enter`, of a batch; None without tables."""
        del values
        if not self.plan.places:
            return None
        new_clocks = self.plan.new_clocks(num_updates, numbers)
        return EnteredTables(self.plan, new_clocks, numbers)

    def new_reasons(
        self, looked_up: Collection[int], gradients: Mapping[int, Gradient]
    ) -> Reasons:
        """As `protocol.Pending.new_reasons`."""
        return self.plan.new_tables(looked_up, gradients)

    def warning(self) -> str | None:
        """As `protocol.Pending.warning`."""
        return self.plan.warning()


@dataclass(frozen=True)
class EnteredTables:
    """The tables of a plan during one batch (`protocol.Entered`)."""

    plan: TablePlan
    clocks: Sequence[clocks.Clock]
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

    def finish(self, values: Sequence[Tensor], state: TableState) -> list[Any]:
        """The carry's values once all rows are up to date."""
        return self.show(values, state).finished().carried(values)


@dataclass(frozen=True)
class ShownTables:
    """The tables of a plan while one update is traced (`protocol.Shown`).

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
    placeholders: tuple[Any, ...]

    @property
    def state(self) -> TableState:
        """As `protocol.Shown.state`."""
        return TableState(list(self.times), [table.last for table in self.tables])

    @property
    def weights(self) -> frozenset[int]:
        """As `protocol.Shown.weights`."""
        return frozenset(place.index for place in self._places)

    @property
    def positions(self) -> frozenset[int]:
        """As `protocol.Shown.positions`."""
        found = [p.weight_position for p in self._places]
        found += [
            p.velocity_position for p in self._places if p.velocity_position is not None
        ]
        return frozenset(found)

    def placed(self, values: Sequence[Tensor]) -> list[Any]:
        """As `protocol.Shown.placed`."""
        found = list(values)
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            found[place.weight_position] = placeholder
        return found

    def carried(self, values: Sequence[Tensor]) -> list[Any]:
        """As `protocol.Shown.carried`."""
        found = list(values)
        for place, table in zip(self._places, self.tables, strict=True):
            found[place.weight_position] = table.weight
            if place.velocity_position is not None:
                found[place.velocity_position] = table.velocity
        return found

    def look_up(self, reader: Reader, variable: Variable, indices: Tensor) -> Any:
        """The rows as they are after all updates so far, (*indices.shape, width).

        None for what is no table, and inside a branch or loop of the model.
        """
        found = [k for k, p in enumerate(self._places) if p.variable is variable]
        if not found or not reader.is_here():
            return None
        (k,) = found
        num_rows, width = variable.shape
        ids = tf.cast(indices, tf.int64)
        ids = tf.where(ids < 0, ids + num_rows, ids)
        # An index out of range stays so, and fits in 32 bits.
        ids = tf.cast(tf.clip_by_value(ids, -1, num_rows), tf.int32)
        flat = rows.fetched(self.tables[k], tf.reshape(ids, (-1,)))
        found_rows = rows.read(self.tables[k], flat, lambda last: self.since(k, last))
        found_rows = reader.leaf(variable, flat, found_rows)
        shape = tf.concat([tf.shape(ids), [width]], 0)
        if ids.shape.is_fully_defined():
            shape = [*ids.shape, width]
        # The dtype is that of an autocast scope.
        return tf.cast(tf.reshape(found_rows, shape), variable.dtype)

    def misread(self, reader: Reader, gradients: Mapping[int, Any]) -> Misread:
        """Tables that were read other than by rows, or have no gradient of rows.

        Asked before the step, and at the end of the update, when all reads are known.
        """
        found: Reasons = {}
        for place, placeholder in zip(self._places, self.placeholders, strict=True):
            variable, gradient = place.variable, gradients.get(place.index)
            is_assigned = reader.get_current_value(variable) is not placeholder
            if is_assigned or placeholder.consumers():
                found[id(variable)] = _OTHERWISE
            elif not isinstance(gradient, RowsGradient):
                found[id(variable)] = "" if gradient is None else _OTHERWISE
            elif 2 * (gradient.indices.shape[0] or 0) >= variable.shape[0]:
                found[id(variable)] = ""  # as much work in parts as on the whole
        return Misread(found, {})

    def step(
        self, gradients: Mapping[int, Any], rates: Sequence[Tensor], applies: Tensor
    ) -> ShownTables:
        """As `protocol.Shown.step`, of the rows that have been looked up."""
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

    def finished(self) -> ShownTables:
        """The tables once all rows are up to date."""
        tables = tuple(
            rows.finish(table, lambda last, k=k: self.since(k, last), self.number(k))
            for k, table in enumerate(self.tables)
        )
        return replace(self, tables=tables)

    @property
    def _places(self) -> Sequence[Any]:
        return self.entered.plan.places

    def number(self, k: int) -> Tensor:
        """() int32: the updates so far, by the clock of table number k."""
        c = self._places[k].clock
        return self.entered.clocks[c].count(self.times[c])

    def since(self, k: int, last: Tensor) -> clocks.Idle:
        """The updates of table k from number `last`, as columns of its type."""
        c = self._places[k].clock
        kind = self.entered.plan.kinds[c]
        found = self.entered.clocks[c].since(self.times[c], last)
        columns = clocks.Idle(*(tf.cast(e, kind.dtype)[:, None] for e in found))
        weight = columns.weight if kind.decays else None
        return clocks.Idle(weight, columns.carried, columns.velocity)


def _moved(
    shown: ShownTables, k: int, gradient: RowsGradient, rate: Tensor, applies: Any
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
    if plan.nesterov:  # once by itself, and once in the velocity
        factor += tf.cast(shown.entered.numbers["momentum"], change.dtype)
    number = shown.number(k)
    return rows.move(
        table, ids, change, lambda last: shown.since(k, last), number, factor
    )
