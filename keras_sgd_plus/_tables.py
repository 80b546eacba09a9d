"""Embedding tables of which an example touches a few rows: the rest is done later.

With momentum or weight decay every update moves every row. Here an update moves the
rows that its examples look up, each together with the updates that it has missed
(`_idle`); the end of a batch brings all rows up to date. What comes out is what moving
every row at once gives, up to rounding.

Looking rows up goes through `keras.ops.take`, which asks `take` while a loop is traced.
A table that is read in any other way has to be complete at each update: `Replan`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus import _idle, _rows
from keras_sgd_plus._plan import Plan, Replan, State, is_large
from keras_sgd_plus._rows import Table
from keras_sgd_plus._state import Scope

_OTHERWISE = (
    "the model, a regularizer or a loss uses it in another way than by keras.ops.take"
)


class Tables:
    """The tables of a plan while one update is traced.

    Args:
        plan: the plan.
        clocks: of the batch.
        state: before the update.
        values: of the carry, before the update.
    """

    def __init__(
        self, plan: Plan, clocks: Sequence[Any], state: State, values: Sequence[Any]
    ) -> None:
        self.plan, self.clocks = plan, clocks
        self._times = list(state.clocks)
        self._tables = [
            Table(
                values[place.weight],
                None if place.velocity is None else values[place.velocity],
                last,
            )
            for place, last in zip(plan.places, state.last, strict=True)
        ]
        # What the model sees in place of a table; nothing may look at it.
        self._shown = [tf.identity(table.weight) for table in self._tables]
        self._is_held: Any = None

    @property
    def state(self) -> State:
        """The state now."""
        return State(self._times, [table.last for table in self._tables])

    @property
    def slots(self) -> list[int]:
        """The slots that `step` steps for."""
        return [place.slot for place in self.plan.places]

    @property
    def positions(self) -> set[int]:
        """Of tables and their velocities in the carry."""
        found = [(p.weight, p.velocity) for p in self.plan.places]
        return {i for pair in found for i in pair if i is not None}

    def shown(self, values: Sequence[Any]) -> list[Any]:
        """The carry's values for the scope."""
        found = list(values)
        for place, shown in zip(self.plan.places, self._shown, strict=True):
            found[place.weight] = shown
        return found

    def carried(self, values: Sequence[Any]) -> list[Any]:
        """The carry's values after the update."""
        found = list(values)
        for place, table in zip(self.plan.places, self._tables, strict=True):
            found[place.weight] = table.weight
            if place.velocity is not None:
                found[place.velocity] = table.velocity
        return found

    def look_up(self, scope: Scope, variable: Any, indices: Any) -> Any:
        """The rows as they are after all updates so far, (*indices.shape, width).

        None for what is no table, and inside a branch or loop of the model.
        """
        found = [k for k, p in enumerate(self.plan.places) if p.variable is variable]
        if not found or not scope.is_here():
            return None
        (k,) = found
        num_rows, width = variable.shape
        ids = tf.cast(indices, tf.int64)
        ids = tf.where(ids < 0, ids + num_rows, ids)
        # Out of range stays so, and fits.
        ids = tf.cast(tf.clip_by_value(ids, -1, num_rows), tf.int32)
        flat = _rows.fetched(self._tables[k], tf.reshape(ids, (-1,)))
        rows = _rows.read(self._tables[k], flat, lambda last: self._since(k, last))
        rows = scope.leaf(variable, flat, rows)
        shape = tf.concat([tf.shape(ids), [width]], 0)
        if ids.shape.is_fully_defined():
            shape = [*ids.shape, width]
        return tf.cast(tf.reshape(rows, shape), variable.dtype)  # of an autocast scope

    def check(self, scope: Scope, gradients: dict[int, Any]) -> None:
        """Raises `Replan` for tables that were read otherwise, or have no gradient.

        Called before the step, and at the end of the update, when all reads are known.
        """
        found: dict[int, str | None] = {}
        for place, shown in zip(self.plan.places, self._shown, strict=True):
            variable, gradient = place.variable, gradients[place.slot]
            is_read = scope.get_current_value(variable) is not shown
            if is_read or shown.consumers():
                found[id(variable)] = _OTHERWISE
            elif not isinstance(gradient, tf.IndexedSlices):
                found[id(variable)] = "" if gradient is None else _OTHERWISE
            elif 2 * (gradient.indices.shape[0] or 0) >= variable.shape[0]:
                found[id(variable)] = ""  # as much work in parts as on the whole
        if found:
            raise Replan(found)

    def hold(self, is_held: Any) -> None:
        """Makes the next step change nothing where `is_held`, () bool."""
        self._is_held = is_held

    def step(
        self, gradients: dict[int, Any], rates: Sequence[Any], applies: Any = None
    ) -> None:
        """One update of the rows that have been looked up.

        Args:
            gradients: `tf.IndexedSlices` by slot, clipped.
            rates: learning rates per slot.
            applies: () bool, or None if it surely does.
        """
        if self._is_held is not None:
            goes_on = tf.logical_not(self._is_held)
            applies = goes_on if applies is None else tf.logical_and(applies, goes_on)
        for c, kind in enumerate(self.plan.kinds):
            single = self.plan.single(kind)
            self._times[c] = self.clocks[c].advance(self._times[c], single, applies)
        rule = self.plan.slots.rule
        for k, place in enumerate(self.plan.places):
            ids = gradients[place.slot].indices
            values = tf.cast(gradients[place.slot].values, self._tables[k].weight.dtype)
            change = values * tf.cast(rates[place.slot], values.dtype)
            # XLA takes the nearest row for an id out of range, and must not change it.
            counts = tf.logical_and(ids >= 0, ids < place.variable.shape[0])
            if applies is not None:
                counts = tf.logical_and(counts, applies)
            change = tf.where(counts[:, None], change, tf.zeros_like(change))
            factor = tf.ones((), change.dtype)
            if rule.nesterov:  # once by itself, and once in the velocity
                factor += tf.cast(tf.constant(rule.momentum), change.dtype)
            number = self._number(k)
            self._tables[k] = _rows.move(
                self._tables[k],
                ids,
                change,
                lambda last, k=k: self._since(k, last),
                number,
                factor,
            )

    def finish(self) -> None:
        """Brings all rows up to date."""
        for k, table in enumerate(self._tables):
            self._tables[k] = _rows.finish(
                table, lambda last, k=k: self._since(k, last), self._number(k)
            )

    def _number(self, k: int) -> Any:
        c = self.plan.places[k].clock
        return self.clocks[c].count(self._times[c])

    def _since(self, k: int, last: Any) -> _idle.Idle:
        # Columns, of the type of the table.
        c = self.plan.places[k].clock
        decays, dtype = self.plan.kinds[c]
        found = self.clocks[c].since(self._times[c], last)
        columns = _idle.Idle(*(tf.cast(each, dtype)[:, None] for each in found))
        weight = columns.weight if decays else None
        return _idle.Idle(weight, columns.carried, columns.velocity)


class _Active(threading.local):
    looking_up: Any = None


_active = _Active()


class looking_up:
    """While it is open, `keras.ops.take` of this thread asks the tables, if any.

    Attributes:
        taken: large variables that were looked up and are not tables, by id.
    """

    def __init__(self, tables: Tables | None, scope: Scope) -> None:
        self.tables, self.scope = tables, scope
        self.taken: dict[int, Any] = {}

    def __enter__(self) -> looking_up:
        self._before, _active.looking_up = _active.looking_up, self
        return self

    def __exit__(self, *error: Any) -> None:
        _active.looking_up = self._before


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Rows of a table, in place of `keras.ops.take`; None where that has to do it."""
    here = _active.looking_up
    if here is None or axis != 0 or not isinstance(x, keras.Variable):
        return None
    if isinstance(indices, (tf.SparseTensor, tf.RaggedTensor)):
        return None
    indices = tf.convert_to_tensor(indices)
    if not indices.dtype.is_integer:
        return None
    rows = None
    if here.tables is not None:
        rows = here.tables.look_up(here.scope, x, indices)
    if rows is None and x.trainable and is_large(x):
        here.taken[id(x)] = x
    return rows
