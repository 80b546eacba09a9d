"""One update from one group of examples: a pure function of the carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.apply_rule import Applied, apply_rule
from keras_sgd_plus._loop.backward import BackwardResult, backward
from keras_sgd_plus._loop.example_update import ExampleUpdate, Values
from keras_sgd_plus._loop.record_group import record_group
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._loop.trace_again import TraceAgain
from keras_sgd_plus._lowering import lookup, products
from keras_sgd_plus._nonfinite import Guard, Skips, first_cause
from keras_sgd_plus._pending import Shown, ShownBlock
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Tensor, Variable
from keras_sgd_plus._records import Record
from keras_sgd_plus._rule import Gradient, State

Logs = Any  # structure of tensors; () where Keras's own logs will do


class UpdateResult(NamedTuple):
    """The result of one update.

    Attributes:
        values: the carry's.
        logs: of the group, or ().
        guard: None under nonfinite="propagate".
        has_started: () bool, whether an update has been applied by now; with a guard.
        changed: positions in the carry of values that are new.
        pending: the state of weights whose updates wait, or ().
        record: of the group, or () where no log asks for it.
    """

    values: Values
    logs: Logs
    guard: Guard | None
    has_started: Tensor
    changed: frozenset[int]
    pending: Any
    record: Record | tuple[()]


def update_once(
    update: ExampleUpdate,
    values: Values,
    group: Sequence[Tensor],
    lowered: bool = False,
    skips: Skips | None = None,
    pending: Shown | None = None,
) -> UpdateResult:
    """Makes one update.

    1. Let the model see the values; forward and backward pass.
    2. Look for what is not finite.
    3. Apply the rule, and update metrics.
    4. Choose between old and new values; say which are new.

    Args:
        update: what the update works with.
        values: the carry's; where it is lowered, in the layout of the loop.
        group: the tensors of examples, (k, ...).
        lowered: whether forms that suit XLA are used.
        skips: of the batch so far, or None under
            nonfinite="propagate".
        pending: weights whose updates wait, if there are any.

    Raises:
        TraceAgain: this trace cannot be used.
    """
    if pending is not None:
        values = pending.placed(values)
    x, y, sample_weight = data = examples.pack(update.batch, list(group))
    transposed = update.transposed if lowered else ()
    scope = Scope(update.carry, values, transposed, update.direct)

    def look_up(variable: Variable, indices: Tensor) -> Any:
        # Rows of tables whose updates wait; None for any other variable.
        return pending and pending.look_up(scope, variable, indices)

    def multiply(variable: Variable, inputs: Tensor) -> Any:
        # Products with kernels whose updates wait; None for any other variable.
        return _product(update, scope, values, pending, variable, inputs)

    with (
        strategy.alone(),
        private_tensorflow.inlined_functions(),
        scope,
        lookup.answered_by(look_up) as looked_up,
        products.answered_by(multiply if lowered else None),
    ):
        found = backward(update, scope, data, examples.count(group[0]), lowered)
        trained = [update.carry.index(v) for v in update.carry.trainable]
        scope.direct.check(update.model, trained, scope.read_directly)
        gradients = found.by_index(update)
        _check_tables(pending, scope, gradients)
        guard = None if skips is None else _guard(update, found, skips)
        skip = None if guard is None else guard.skip
        record = record_group(update, scope, y, found, skip)
        applied = apply_rule(update, scope, found, guard, pending)
        metrics = update.model.compute_metrics
        logs = metrics(x, y, found.y_pred, sample_weight=sample_weight)
        new = scope.values(update.carry.variables)
    if scope.undeclared:
        raise TraceAgain(variables=list(scope.undeclared.values()))
    # Once more, for the tables that `compute_metrics` looked at.
    _check_tables(pending, scope, gradients)
    if lowered:
        reasons = update.pending.new_reasons(looked_up, gradients)
        if reasons:
            raise TraceAgain(reasons=reasons)
    if guard is not None:
        chosen = _chosen_by_rule(update, values, applied.before)
        counter = update.variables.iterations
        new = guard.choose(update.carry.variables, new, values, counter, chosen)
    if update.keeps_logs:
        logs = keras.tree.map_structure(tf.convert_to_tensor, logs)
    else:
        logs = ()
    result = _result(values, new, logs, guard, applied)._replace(record=record)
    scope.direct.check(update.model, result.changed, ())
    return result


def _guard(update: ExampleUpdate, found: BackwardResult, skips: Skips) -> Guard:
    # A gradient that is too large for loss scaling is Keras's to skip.
    looked_at = found.gradients if update.outer is update.optimizer else []
    return Guard.of(first_cause(found.loss, looked_at), skips, update.raises)


def _result(
    old: Values, new: Values, logs: Logs, guard: Guard | None, applied: Applied
) -> UpdateResult:
    pairs = enumerate(zip(new, old, strict=True))
    changed = frozenset(i for i, (a, b) in pairs if a is not b)
    pending, state = applied.pending, ()
    if pending is not None:
        new = pending.carried(new)
        changed, state = changed | pending.positions, pending.state
    return UpdateResult(new, logs, guard, applied.has_started, changed, state, ())


def _product(
    update: ExampleUpdate,
    scope: Scope,
    values: Values,
    pending: Shown | None,
    variable: Variable,
    inputs: Tensor,
) -> Any:
    if not scope.is_here():
        return None
    reads = update.blocks.new_reads(variable, inputs, values)
    if reads:
        every = update.carry.variables
        raise TraceAgain(
            kernels={
                kernel: None if found is None else [every[i] for i in found]
                for kernel, found in reads.items()
            }
        )
    if not isinstance(pending, ShownBlock) or scope.has_product(variable):
        return None
    product = pending.multiplied(variable)
    if product is None:
        return None
    scope.product_leaf(variable, *product)
    return scope.watched_inputs(variable, inputs) + product[1]


def _check_tables(
    pending: Shown | None, scope: Scope, gradients: Mapping[int, Gradient]
) -> None:
    if pending is not None:
        misread = pending.misread(scope, gradients)
        if any(misread):
            raise TraceAgain(reasons=misread.tables, kernels=misread.kernels)


def _chosen_by_rule(update: ExampleUpdate, values: Values, before: State) -> set[int]:
    # Positions between whose values the rule has chosen: its variables, unless the
    # model assigned to them before.
    columns = (before.weights, *before.slots.values())
    at_rule = {id(value) for column in columns for value in column}
    of_rule = {id(v) for row in update.variables.rows for v in row}
    pairs = enumerate(zip(update.carry.variables, values, strict=True))
    return {i for i, (v, x) in pairs if id(v) in of_rule and id(x) in at_rule}
