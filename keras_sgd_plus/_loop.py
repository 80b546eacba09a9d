"""The walk over one batch: a pure loop, carry in, carry out.

    carry = tensors of model, optimizer, metric and seed variables
    while example_index < num_examples:
        carry = update(carry, example)      # forward, tape, update rule, metrics

No variable is written in here. The carry is committed when the whole batch is done, by
the compiled function at its end or by `_step`, so a batch is a transaction.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus import (
    _examples,
    _keras,
    _kernel,
    _layout,
    _lowering,
    _messages,
    _nonfinite,
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
    """

    def __init__(
        self, model: Any, optimizer: Any, outer: Any, carry: Carry, batch: Any
    ) -> None:
        self.model, self.optimizer, self.outer = model, optimizer, outer
        self.carry, self.batch = carry, batch
        self.slots = Slots(optimizer)
        self.transposed = _layout.transposed(model, carry.variables, self.slots)
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
    ) -> tuple[Values, Logs, Guard | None]:
        """Values and logs after the update, and the guard, where there are faults.

        Args:
            values: the carry's; where it is lowered, as `swapped` gives them.
            group: the tensors of examples, (k, ...).
            lowered: whether forms that suit XLA are used.
            faults: of the batch so far, or None where nobody looks for them.
        """
        guard = None
        x, y, sample_weight = _examples.pack(self.batch, list(group))
        transposed = self.transposed if lowered else ()
        with _xla.inlined_functions(), Scope(self.carry, values, transposed) as scope:
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
            if faults is not None:
                # A gradient that is too large for loss scaling is Keras's to skip.
                looked_at = gradients if self.outer is self.optimizer else []
                cause = _nonfinite.first_cause(loss, looked_at)
                guard = Guard(self.slots, cause, faults, self.raises)
            if self.carry.trainable:
                self._apply(scope, gradients, readers, guard)
            else:
                warnings.warn("The model does not have any trainable weights.")
            logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            new = scope.values(self.carry.variables)
        if scope.undeclared:
            raise UndeclaredState(list(scope.undeclared.values()))
        if guard is not None:
            new = guard.choose(self.carry.variables, new, values)
        self.changed |= {
            i for i, (a, b) in enumerate(zip(new, values, strict=True)) if a is not b
        }
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
        choices: tuple[Any, ...] = ()
        if guard is not None:
            has_started = guard.started
            by_slot = guard.gradients(by_slot, state)
            choices = (guard.is_held, has_started)
        learning_rate = tf.convert_to_tensor(self.optimizer.learning_rate)
        rates = [learning_rate] * len(state.weights)
        if readers is not None:
            rates = [readers.rate_after(w, learning_rate) for w in state.weights]
        if self.outer is self.optimizer:
            state = _update.apply_gradients(rule, state, by_slot, rates, *choices)
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
            )
            for pair in zip(variables, loss_scale, strict=True):
                scope.add_update(pair)
        self.slots.write(scope, state)


def walk(
    update: Update,
    values: Values,
    leaves: Sequence[Any],
    order: Any,
    num_examples: tf.Tensor,
    log_specs: Logs,
    compiled: bool,
    is_halted: Any = None,
) -> tuple[Values, tuple[Logs, Any], Any]:
    """Updates once per full group.

    Args:
        values: the carry before the batch.
        leaves: tensors of the batch, `(num_examples or more, ...)`.
        order: positions to visit, `(num_examples or more,)` int32, or None for the
            order in which the examples were handed over.
        num_examples: () int32. A tensor bound costs nothing and spares a compilation
            per batch size.
        log_specs: as the function `log_specs` returns them; zeros are the logs of no
            group at all.
        compiled: whether XLA compiles the loop, and forms that suit it are used.
        is_halted: () bool, whether to walk nothing, for a fault that came before; None
            where nobody looks for faults.

    Returns:
        The carry after the batch; the logs of the last group and the faults (or ());
        and the loop's fence, which has to leave the compiled function, or XLA would
        remove it.
    """
    size = update.optimizer.examples_per_update
    num_groups = num_examples // size
    lowered = compiled and _lowering.is_on()
    counter = values[update.carry.index(_keras.raw_iterations(update.optimizer))]
    one = tf.cast(counter >= 0, tf.int32)  # which XLA cannot know

    def cond_fn(i: Any, values: Any, logs: Any, faults: Any, fence: Any) -> Any:
        del values, logs, fence
        goes_on = i < num_groups
        return tf.logical_and(goes_on, faults.count < 1) if update.raises else goes_on

    def body_fn(i: Any, values: Values, logs: Logs, faults: Any, fence: Any) -> Any:
        positions = i * size + tf.range(size, dtype=tf.int32)
        if order is not None:
            positions = tf.gather(order, positions)
        group = [_examples.take(leaf, positions) for leaf in leaves]
        with _lowering.active(one) if lowered else contextlib.nullcontext():
            values, (logs, faults) = walk_group(
                update, values, group, positions, logs, faults, lowered
            )
        if compiled:
            graph = tf.compat.v1.get_default_graph()
            update.compiles = _xla.surely_takes(graph)
            fence = _kernel.fenced(graph, fence, i)
        return i + 1, values, logs, faults, fence

    logs = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), log_specs)
    start = update.swapped(values) if lowered else list(values)
    faults = ()
    if is_halted is not None:
        rows = 2 if update.raises else _examples.count(leaves[0]) // size + 2
        faults = update.no_faults(values, rows, is_halted)
    _, values, logs, faults, fence = tf.while_loop(
        cond_fn,
        body_fn,
        (tf.constant(0), start, logs, faults, _kernel.new_fence()),
        parallel_iterations=1,
    )
    values = update.swapped(values) if lowered else values
    return values, (logs, faults), fence


def walk_group(
    update: Update,
    values: Values,
    group: Sequence[Any],
    positions: Any,
    logs: Logs,
    faults: Any,
    lowered: bool = False,
) -> tuple[Values, tuple[Logs, Any]]:
    """Updates once: with a full group, or what is left over of a batch.

    Args:
        update: the update.
        values: the carry's; where it is lowered, as `Update.swapped` gives them.
        group: tensors of examples, (k or fewer, ...).
        positions: (k or fewer,) int32, theirs in the batch.
        logs, faults: of the groups before; no faults, (), where nobody looks.
        lowered: whether forms that suit XLA are used.
    """
    values, new_logs, guard = update(values, group, lowered, faults or None)
    if guard is not None:
        new_logs = guard.logs(new_logs, logs)
        faults = _nonfinite.note(faults, guard.cause, positions, guard.started)
    return values, (new_logs, faults)


def log_specs(update: Update, leaves: Sequence[Any]) -> Logs:
    """Shapes and dtypes of the logs of one update, or () where none are kept."""
    if not update.keeps_logs:
        return ()

    def first_logs(values: Values, leaves: Sequence[Any]) -> Logs:
        first = tf.zeros((1,), tf.int32)
        return update(values, [_examples.take(leaf, first) for leaf in leaves])[1]

    trace: Callable[..., Any] = tf.function(first_logs, autograph=False)
    specs = update.carry.specs()
    return trace.get_concrete_function(specs, list(leaves)).structured_outputs
