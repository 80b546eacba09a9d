"""One update from one group of examples: a pure function of the carry."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus import (
    _examples,
    _keras,
    _kernel,
    _layout,
    _messages,
    _nonfinite,
    _plan,
    _strategy,
    _tables,
    _update,
    _xla,
)
from keras_sgd_plus._guard import Guard
from keras_sgd_plus._nonfinite import Faults
from keras_sgd_plus._state import Carry, Scope, Slots

Values = list[Any]  # the carry's tensors, in the order of `Carry.variables`
Logs = Any  # structure of tensors; () where Keras's own logs will do


class UndeclaredState(Exception):
    """A trace wrote variables that its carry did not hold."""

    def __init__(self, variables: list[Any]) -> None:
        super().__init__()
        self.variables = variables


class Update:
    """One update from one group of examples, as a pure function of the carry.

    Args:
        model: the model in training.
        optimizer: the SGDPlus whose rule is applied.
        outer: the `LossScaleOptimizer` around it, or the same object again.
        carry: the variables that the values stand for.
        batch: `(x, y, sample_weight)`; only its structure is used.
        known: of tables, as for `Plan`.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        outer: Any,
        carry: Carry,
        batch: Any,
        known: dict[int, str | None] | None = None,
    ) -> None:
        self.model, self.optimizer, self.outer = model, optimizer, outer
        self.carry, self.batch = carry, batch
        self.slots = Slots(optimizer)
        self.transposed = _layout.transposed(model, carry.variables, self.slots)
        self.plan = _plan.Plan(carry, self.slots, model, known or {})
        self.index = [_keras.variable_index(optimizer, v) for v in carry.trainable]
        self.keeps_logs = not _keras.has_default_metrics(model)
        self.raises = optimizer.nonfinite == "raise"
        # Known after a trace:
        self.changed: set[int] = set()  # positions in the carry
        self.compiles = False  # whether XLA surely takes the loop's body

    def __call__(
        self,
        values: Values,
        group: Sequence[Any],
        lowered: bool = False,
        faults: Faults | None = None,
        tables: _tables.Tables | None = None,
    ) -> tuple[Values, Logs, Guard | None]:
        """Values and logs after the update, and the guard, where there are faults.

        Args:
            values: the carry's; where it is lowered, as `swapped` gives them.
            group: the tensors of examples, (k, ...).
            lowered: whether forms that suit XLA are used.
            faults: of the batch so far, or None where nobody looks for them.
            tables: where some are moved in parts; they have their state after it.
        """
        guard = None
        if tables is not None:
            values = tables.shown(values)
        x, y, sample_weight = _examples.pack(self.batch, list(group))
        transposed = self.transposed if lowered else ()
        with (
            _strategy.alone(),
            _xla.inlined_functions(),
            Scope(self.carry, values, transposed) as scope,
            _tables.looking_up(tables, scope) as looked_up,
        ):
            with scope.record() as tape:
                y_pred = _keras.forward(self.model, x)
                loss = _keras.compute_loss(self.model, x, y, y_pred, sample_weight)
                tracker = _keras.loss_tracker(self.model)
                if tracker is not None:
                    size = _examples.count(group[0])
                    tracker.update_state(loss, sample_weight=size)
                scaled = self.outer.scale_loss(loss)
            gradients = []
            if self.carry.trainable:
                readers = _kernel.Readers() if lowered else None
                gradients = scope.gradients(tape, scaled)
            by_slot = dict(zip(self.index, gradients, strict=True)) if gradients else {}
            if tables is not None:
                tables.check(scope, by_slot)
            if faults is not None:
                # A gradient that is too large for loss scaling is Keras's to skip.
                looked_at = gradients if self.outer is self.optimizer else []
                cause = _nonfinite.first_cause(loss, looked_at)
                guard = Guard(self.slots, cause, faults, self.raises)
            if self.carry.trainable:
                self._apply(scope, gradients, readers, guard, tables)
            else:
                warnings.warn("The model does not have any trainable weights.")
            logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            new = scope.values(self.carry.variables)
        if scope.undeclared:
            raise UndeclaredState(list(scope.undeclared.values()))
        if tables is not None:  # once more, for what `compute_metrics` looked at
            tables.check(scope, by_slot)
        if lowered:
            self.plan.welcome(looked_up.taken, by_slot)
        if guard is not None:
            new = guard.choose(self.carry.variables, new, values)
        self.changed |= {
            i for i, (a, b) in enumerate(zip(new, values, strict=True)) if a is not b
        }
        if tables is not None:
            new = tables.carried(new)
            self.changed |= tables.positions
        if not self.keeps_logs:
            return new, (), guard
        return new, keras.tree.map_structure(tf.convert_to_tensor, logs), guard

    def no_faults(self, values: Values, num_rows: Any, is_halted: Any) -> Faults:
        """Before the first group. The averages of `use_ema` are zeros until the first
        update is applied, which the counter does not tell."""
        averages = [
            tf.reduce_any(values[self.carry.index(v)] != 0)
            for v in self.slots.averages
            if v is not None
        ]
        started = tf.reduce_any(tf.stack(averages)) if averages else tf.constant(True)
        size = self.optimizer.examples_per_update
        return _nonfinite.no_faults(num_rows, size, is_halted, started)

    def swapped(self, values: Values) -> Values:
        """Values with the matrices transposed that a lowered loop carries so."""
        return [
            tf.transpose(value) if i in self.transposed else value
            for i, value in enumerate(values)
        ]

    def _apply(
        self,
        scope: Scope,
        gradients: list[Any],
        readers: _kernel.Readers | None,
        guard: Guard | None,
        tables: _tables.Tables | None,
    ) -> None:
        pairs = zip(gradients, self.carry.trainable, strict=True)
        missing = [v.path for g, v in pairs if g is None]
        if len(missing) == len(gradients):
            raise ValueError(_messages.no_gradients(missing))
        if missing:
            warnings.warn(_messages.missing_gradients(missing))
        by_slot: list[Any] = [None] * len(self.slots.weights)
        for position, gradient in zip(self.index, gradients, strict=True):
            by_slot[position] = gradient
        rule, state = self.slots.rule, self.slots.read(scope)
        choices: tuple[Any, Any] = (None, None)
        if guard is not None:
            has_started = guard.started
            by_slot = guard.gradients(by_slot, state)
            choices = (guard.is_held, has_started)
        learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
        rates = [learning_rate] * len(state.weights)
        if readers is not None:
            rates = [readers.rate_after(w, learning_rate) for w in state.weights]
        if self.outer is self.optimizer:
            state = _update.apply_gradients(
                rule, state, by_slot, rates, *choices, tables
            )
        else:
            variables = (self.outer.step_counter, self.outer.dynamic_scale)
            state, loss_scale = _update.apply_scaled_gradients(
                rule,
                state,
                by_slot,
                rates,
                _update.LossScale(*scope.values(variables)),
                self.outer.dynamic_growth_steps,
                *choices,
                tables,
            )
            for pair in zip(variables, loss_scale, strict=True):
                scope.add_update(pair)
        self.slots.write(scope, state)
