"""Embedding tables of which an example touches a few rows: the rest is done later.

With momentum or weight decay every update moves every row. Here an update moves the
rows that its examples look up, each together with the updates that it has missed
(`_idle`); the end of a batch brings all rows up to date. What comes out is what moving
every row at once gives, up to rounding.

Looking rows up goes through `keras.ops.take`, which asks `take` while a loop is traced.
A table that is read in any other way has to be complete at each update: `Whole`.

XLA changes a table in place, rows one after the other, if it can see that nothing reads
the old table later; what it cannot see itself is said by a choice that never falls on
the later value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus import _idle, _keras, _lowering
from keras_sgd_plus._state import Carry, Scope, Slots

MIN_ENTRIES = 8_192  # of a table; smaller ones are moved as a whole
_ROWS_AT_ONCE = 512  # at the end of a batch

put: Any = keras.ops.slice_update  # its annotations name tensors of every backend


class Whole(Exception):
    """A trace found that tables have to be moved as a whole, or need not be.

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
            decays = rule.weight_decay is not None and rule.decays[slot]
            moves = rule.momentum or decays
            if id(variable) not in trainable or not (moves and _is_large(variable)):
                continue
            # Found to be a table, or to be one that must be whole; or not known yet.
            found = known.get(id(variable), None)
            if id(variable) not in tables and id(variable) not in known:
                continue
            reason = found if found is not None else _refusal(rule, slot, variable)
            if reason is not None:
                if reason:
                    self.refusals.append((variable, reason))
                continue
            kind = (decays, variable.dtype)
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

    def welcome(
        self, taken: dict[int, Any], gradients: Sequence[Any], variables: Sequence[Any]
    ) -> None:
        """Raises `Whole` for variables that turn out to be tables."""
        new: dict[int, str | None] = {
            id(v): None
            for g, v in zip(gradients, variables, strict=True)
            if id(v) in taken and id(v) not in self.known
            if isinstance(g, tf.IndexedSlices) and self._moves(v)
        }
        if new:
            raise Whole(new)

    def _moves(self, variable: Any) -> bool:
        rule, slots = self.slots.rule, self.slots
        slot = next(i for i, v in enumerate(slots.weights) if v is variable)
        decays = rule.weight_decay is not None and rule.decays[slot]
        return bool(rule.momentum or decays) and _refusal(rule, slot, variable) is None

    def single(self, kind: tuple[bool, str]) -> _idle.Idle:
        """One idle update of a clock, at the learning rate of now."""
        rule, optimizer = self.slots.rule, self.slots.optimizer
        decays, dtype = kind
        decay = tf.constant(0.0, tf.float64)
        if decays:
            # The numbers that the update rule multiplies, rounded as there.
            rate = tf.cast(tf.convert_to_tensor(optimizer.learning_rate), dtype)
            amount = tf.cast(tf.constant(rule.weight_decay, tf.float32), tf.float64)
            decay = tf.cast(rate, tf.float64) * amount
        return _idle.once(rule.momentum, rule.nesterov, decay)

    def clocks(self, num_updates: Any) -> list[Any]:
        """The clocks of a batch of at most so many updates, () int32."""
        is_steady = _keras.has_constant_rate(self.slots.optimizer)
        return [
            _idle.Changing(num_updates)
            if kind[0] and not is_steady
            else _idle.Steady(self.single(kind), num_updates)
            for kind in self.kinds
        ]

    def start(self, clocks: Sequence[Any]) -> State:
        """The state before a batch: nothing is behind."""
        last = [tf.zeros((p.variable.shape[0],), tf.int32) for p in self.places]
        return State([clock.start() for clock in clocks], last)


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
        self._clocks, self._last = list(state.clocks), list(state.last)
        self._weights = [values[p.weight] for p in plan.places]
        self._velocities = [
            None if p.velocity is None else values[p.velocity] for p in plan.places
        ]
        # What the model sees in place of a table; nothing may look at it.
        self._shown = [tf.identity(w) for w in self._weights]
        self._is_held: Any = None

    @property
    def slots(self) -> list[int]:
        """The slots that `step` steps for."""
        return [place.slot for place in self.plan.places]

    def hold(self, is_held: Any) -> None:
        """Makes the next step change nothing where `is_held`, () bool."""
        self._is_held = is_held

    def shown(self, values: Sequence[Any]) -> list[Any]:
        """The carry's values for the scope."""
        found = list(values)
        for place, shown in zip(self.plan.places, self._shown, strict=True):
            found[place.weight] = shown
        return found

    def carried(self, values: Sequence[Any]) -> list[Any]:
        """The carry's values after the update."""
        found = list(values)
        for k, place in enumerate(self.plan.places):
            found[place.weight] = self._weights[k]
            if place.velocity is not None:
                found[place.velocity] = self._velocities[k]
        return found

    @property
    def state(self) -> State:
        """The state now."""
        return State(self._clocks, self._last)

    def look_up(self, scope: Scope, variable: Any, indices: Any) -> Any:
        """The rows as they are after all updates so far, (*indices.shape, width)."""
        k = self._number(variable)
        if k is None or not scope.is_here():
            return None
        size = variable.shape[0]
        ids = tf.cast(tf.where(indices < 0, indices + size, indices), tf.int32)
        flat = tf.reshape(ids, (-1,))
        flat = self._fetched(k, flat)
        rows = scope.leaf(variable, flat, self._read(k, flat))
        shape = tf.concat([tf.shape(ids), variable.shape[1:]], 0)
        if ids.shape.is_fully_defined():
            shape = [*ids.shape, *variable.shape[1:]]
        return tf.cast(tf.reshape(rows, shape), variable.dtype)

    def positions(self) -> set[int]:
        """Of tables and their velocities in the carry."""
        found = [(p.weight, p.velocity) for p in self.plan.places]
        return {i for pair in found for i in pair if i is not None}

    def check(self, scope: Scope, gradients: dict[int, Any]) -> None:
        """Raises `Whole` for tables that were read otherwise, or have no gradient."""
        found: dict[int, str | None] = {}
        for k, place in enumerate(self.plan.places):
            variable = place.variable
            gradient = gradients[place.slot]
            seen = scope.get_current_value(variable)
            if seen is not self._shown[k] or self._shown[k].consumers():
                found[id(variable)] = (
                    "the model, a regularizer or a loss uses it in another way than "
                    "by keras.ops.take"
                )
            elif not isinstance(gradient, tf.IndexedSlices):
                found[id(variable)] = ""
            elif 2 * (gradient.indices.shape[0] or 0) >= variable.shape[0]:
                found[id(variable)] = ""  # as much work in parts as on the whole
        if found:
            raise Whole(found)

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
        for k, kind in enumerate(self.plan.kinds):
            single = self.plan.single(kind)
            self._clocks[k] = self.clocks[k].advance(self._clocks[k], single, applies)
        for k, place in enumerate(self.plan.places):
            gradient = gradients[place.slot]
            values = tf.cast(gradient.values, self._weights[k].dtype)
            change = values * tf.cast(rates[place.slot], values.dtype)
            # XLA takes the nearest row for an id out of range, and must not change it.
            size = place.variable.shape[0]
            counts = tf.logical_and(gradient.indices >= 0, gradient.indices < size)
            if applies is not None:
                counts = tf.logical_and(counts, applies)
            change = tf.where(counts[:, None], change, tf.zeros_like(change))
            self._move(k, gradient.indices, change)

    def finish(self) -> None:
        """Brings all rows up to date."""
        for k in range(len(self.plan.places)):
            self._finish(k)

    def _number(self, variable: Any) -> int | None:
        found = [k for k, p in enumerate(self.plan.places) if p.variable is variable]
        return found[0] if found else None

    def _since(self, k: int, last: Any) -> _idle.Idle:
        # Coefficients as columns, of the type of the table.
        clock = self.plan.places[k].clock
        found = self.clocks[clock].since(self._clocks[clock], last)
        dtype = self._weights[k].dtype
        return _idle.Idle(*(tf.cast(c, dtype)[:, None] for c in found))

    def _moved(self, k: int, since: _idle.Idle, weight: Any, velocity: Any) -> Any:
        decays, _ = self.plan.kinds[self.plan.places[k].clock]
        if decays:
            weight = since.weight * weight
        return weight if velocity is None else weight + since.carried * velocity

    def _fetched(self, k: int, ids: Any) -> Any:
        # Touches the rows first: the processor waits for all of them at once.
        tables = [t for t in (self._weights[k], self._velocities[k]) if t is not None]

        def body(r: Any, total: Any) -> Any:
            at = tf.gather(ids, tf.reshape(r, (1,)))
            parts = [tf.cast(tf.gather(self._last[k], at), total.dtype)]
            for table in tables:
                for column in range(0, min(table.shape[1], 64), 64 // table.dtype.size):
                    place = tf.stack([at, tf.constant([column])], 1)
                    parts.append(tf.gather_nd(table, place))
            return r + 1, total + tf.add_n(parts)

        zero = tf.zeros((1,), tables[0].dtype)
        total = _for_each(ids, body, zero)[0]
        return tf.where(_lowering.never(), tf.cast(total, tf.int32), ids)

    def _read(self, k: int, ids: Any) -> Any:
        weights, velocities, last = self._weights[k], self._velocities[k], self._last[k]

        def body(r: Any, rows: Any) -> Any:
            at = tf.gather(ids, tf.reshape(r, (1,)))
            velocity = None if velocities is None else tf.gather(velocities, at)
            since = self._since(k, tf.gather(last, at))
            row = self._moved(k, since, tf.gather(weights, at), velocity)
            return r + 1, put(rows, tf.stack([r, 0]), row)

        shape = tf.stack([tf.shape(ids)[0], weights.shape[1]])
        (rows,) = _for_each(ids, body, tf.zeros(shape, weights.dtype))
        rows.set_shape((ids.shape[0], weights.shape[1]))
        return rows

    def _move(self, k: int, ids: Any, change: Any) -> None:
        """Adds what is due, row by row, so that an id that repeats adds twice.

        With Nesterov a gradient moves the weight (1 + momentum) times.
        """
        rule, clock = self.plan.slots.rule, self.plan.places[k].clock
        number = self.clocks[clock].count(self._clocks[clock])
        factor = 1 + tf.cast(tf.constant(rule.momentum), change.dtype)

        def body(r: Any, *tables: Any) -> Any:
            weights, velocities, last = tables[0], tables[1:-1], tables[-1]
            at = tf.gather(ids, tf.reshape(r, (1,)))
            hidden = at * _lowering.one()
            start = tf.stack([at[0], 0])
            due = tf.gather(change, tf.reshape(r, (1,)))
            before = tf.gather(last, at)
            since = self._since(k, before)
            velocity = tf.gather(velocities[0], at) if velocities else None
            row = self._moved(k, since, tf.gather(weights, at), velocity)
            weights = put(weights, start, row - (factor * due if rule.nesterov else due))
            new, seen = [weights], tf.gather(weights, hidden)
            if velocities:
                row = since.velocity * velocity - due
                row = tf.where(_lowering.never(), seen, row)
                new.append(put(velocities[0], start, row))
                seen = tf.gather(new[1], hidden)
            after = tf.maximum(before, number)
            after = tf.where(_lowering.never(), tf.cast(seen[0, :1], tf.int32), after)
            return r + 1, *new, put(last, at, after)

        old = [t for t in (self._weights[k], self._velocities[k]) if t is not None]
        *new, self._last[k] = _for_each(ids, body, *old, self._last[k])
        self._weights[k] = new[0]
        if len(new) > 1:
            self._velocities[k] = new[1]

    def _finish(self, k: int) -> None:
        # In blocks of rows: each is read once, and changed in place.
        last, num_rows = self._last[k], self.plan.places[k].variable.shape[0]
        size = min(_ROWS_AT_ONCE, num_rows)
        shape = (size, self._weights[k].shape[1])
        clock = self.plan.places[k].clock
        number = self.clocks[clock].count(self._clocks[clock])

        def body(i: Any, weights: Any, *velocities: Any) -> Any:
            first = tf.minimum(i * size, num_rows - size)
            places = first + tf.range(size)
            behind = tf.slice(last, [first], [size])
            behind = tf.where(places >= i * size, behind, number)
            since = self._since(k, behind)
            start = tf.stack([first, 0])
            weight, *velocity = (tf.slice(t, start, shape) for t in (weights, *velocities))
            rows = self._moved(k, since, weight, *(velocity or [None]))
            weights = put(weights, start, rows)
            if not velocities:
                return i + 1, weights
            seen = tf.gather(weights, start[:1] * _lowering.one())
            rows = tf.where(_lowering.never(), seen, since.velocity * velocity[0])
            return i + 1, weights, put(velocities[0], start, rows)

        old = [t for t in (self._weights[k], self._velocities[k]) if t is not None]
        blocks = -(-num_rows // size)
        _, *new = tf.while_loop(
            lambda i, *_: i < blocks,
            body,
            (tf.constant(0), *old),
            parallel_iterations=1,
            name=_lowering.TAKEN,
        )
        self._weights[k] = new[0]
        if len(new) > 1:
            self._velocities[k] = new[1]


class _Active(threading.local):
    tables: Tables | None = None
    scope: Any = None
    large: dict[int, Any] = {}


_active = _Active()


class looking_up:
    """While it is open, `keras.ops.take` of this thread asks the tables.

    Notes in `taken` large variables that were looked up and are not tables.
    """

    def __init__(self, tables: Tables | None, scope: Scope) -> None:
        self._new = tables, scope
        self.taken: dict[int, Any] = {}

    def __enter__(self) -> looking_up:
        self._old = _active.tables, _active.scope, _active.large
        _active.tables, _active.scope = self._new
        _active.large = self.taken
        return self

    def __exit__(self, *error: Any) -> None:
        _active.tables, _active.scope, _active.large = self._old


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Rows of a table, in place of `keras.ops.take`; None where that has to do it."""
    if _active.scope is None or axis != 0 or not isinstance(x, keras.Variable):
        return None
    if not isinstance(indices, tf.Tensor) or not indices.dtype.is_integer:
        return None
    rows = None
    if _active.tables is not None:
        rows = _active.tables.look_up(_active.scope, x, indices)
    if rows is None and x.trainable and _is_large(x):
        _active.large[id(x)] = x
    return rows


def _for_each(ids: Any, body: Callable[..., Any], *state: Any) -> list[Any]:
    num = tf.shape(ids)[0] if ids.shape[0] is None else ids.shape[0]
    _, *found = tf.while_loop(
        lambda r, *_: r < num,
        body,
        (tf.constant(0), *state),
        parallel_iterations=1,
        name=_lowering.TAKEN,
    )
    return found


def _embeddings(model: Any) -> list[Any]:
    layers = [e for e in _keras.layers(model) if isinstance(e, keras.layers.Embedding)]
    return [v for layer in layers for v in layer.trainable_variables]


def _is_large(variable: Any) -> bool:
    shape = variable.shape
    return len(shape) == 2 and shape[0] * shape[1] >= MIN_ENTRIES


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
