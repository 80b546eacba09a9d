"""One update from one group of examples: a pure function of the carry.

    forward and backward pass -> record -> rule -> metrics -> choice of values

The model sees the tensors of the carry through a `Scope`. Where a group is not finite,
a `Guard` keeps the old values.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_sgd_plus._forms import one_kernel, tracing
from keras_sgd_plus._lazy.blocks import ShownBlock
from keras_sgd_plus._lazy.tables import ShownTables
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context, Values
from keras_sgd_plus._loop.scope import Scope, TraceAgain
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Parts, Structure, Tensor, Variable
from keras_sgd_plus._report import running_sums
from keras_sgd_plus._report.guard import Guard, Skips, first_cause
from keras_sgd_plus._report.records import Record, Recorder, gradient_norm, record
from keras_sgd_plus._rule.gradient import Gradient, as_gradient
from keras_sgd_plus._rule.part import State, Update
from keras_sgd_plus._rule.rule import LossScale, Updated, apply_scaled

Logs = object  # structure of tensors; () where Keras's own logs will do
Shown = ShownTables | ShownBlock  # weights whose updates wait, during one update


class UpdateResult(NamedTuple):
    """The result of one update.

    Attributes:
        values: the carry's.
        logs: of the group, or ().
        guard: None under nonfinite="propagate".
        changed: positions in the carry of values that are new.
        lazy: the state of weights whose updates wait, or ().
        record: of the group, or () where no log asks for it.
    """

    values: Values
    logs: Logs
    guard: Guard | None
    changed: frozenset[int]
    lazy: Any
    record: Record | tuple[()]


def update_once(
    context: Context,
    values: Values,
    group: Sequence[Tensor],
    lowered: bool = False,
    skips: Skips | None = None,
    shown: Shown | None = None,
) -> UpdateResult:
    """Makes one update.

    Args:
        context: what the update works with.
        values: the carry's; where it is lowered, in the layout of the loop.
        group: the tensors of examples, (k, ...).
        lowered: whether forms that suit XLA are used.
        skips: of the batch so far, or None under nonfinite="propagate".
        shown: weights whose updates wait, if there are any.

    Raises:
        TraceAgain: this trace cannot be used.
    """
    if shown is not None:
        values = shown.placed(values)
    transposed = context.transposed if lowered else ()
    scope = Scope(context.carry, values, transposed, context.direct)
    answers = context.answers(scope, group)
    x, y, sample_weight = answers.data

    def look_up(variable: Variable, indices: Tensor) -> Tensor | None:
        # Rows of tables that wait; None for any other variable.
        if isinstance(shown, ShownTables):
            return shown.look_up(scope, variable, indices)

    multiply = functools.partial(_product, context, scope, values, shown)

    def check_shown() -> None:
        misread = {} if shown is None else shown.misread(scope, gradients)
        if misread:
            raise TraceAgain(**misread)

    with (
        context.replicas.alone(),
        private_tensorflow.inlined_functions(),
        scope,
        answers.open(),
        tracing.answering(look_up, multiply if lowered else None) as looked_up,
    ):
        found = backward(
            context, scope, answers.data, examples.count(group[0]), lowered
        )
        trained = [context.carry.index(v) for v in context.carry.trainable]
        scope.direct.check(context.model, trained, scope.read_directly)
        gradients = found.by_index(context)
        check_shown()
        guard = None if skips is None else _guard(context, found, skips)
        skip = None if guard is None else guard.skip
        recorded = record_group(context, scope, y, found, skip)
        before, shown = apply_rule(context, scope, found, guard, shown)
        metrics = context.model.compute_metrics
        logs = metrics(x, y, found.y_pred, sample_weight=sample_weight)
        new = scope.values(context.carry.variables)
    if scope.undeclared:
        raise TraceAgain(variables=scope.undeclared)
    check_shown()  # once more, for what `compute_metrics` looked at
    if lowered and (tables := context.tables.new_reasons(looked_up, gradients)):
        raise TraceAgain(tables=tables)
    if guard is not None:
        new = _chosen(context, guard, new, values, before)
    logs = _kept(context, logs)
    new, changed, lazy = _carried(new, values, shown)
    answers.check([new, logs, lazy, recorded], changed)
    scope.direct.check(context.model, changed, ())
    return UpdateResult(new, logs, guard, changed, lazy, recorded)


def _kept(context: Context, logs: Any) -> Logs:
    if not context.keeps_logs:
        return ()
    return keras.tree.map_structure(tf.convert_to_tensor, logs)


def _carried(
    new: Values, old: Values, shown: Shown | None
) -> tuple[Values, frozenset[int], Any]:
    # Values to go on with, positions of those that are new, the state of lazy weights.
    pairs = enumerate(zip(new, old, strict=True))
    changed = frozenset(i for i, (a, b) in pairs if a is not b)
    if shown is None:
        return new, changed, ()
    return shown.carried(new), changed | shown.positions, shown.state


class BackwardResult(NamedTuple):
    """The results of forward and backward pass.

    Attributes:
        y_pred: the outputs of the model.
        loss: () float, that the gradients are of, before loss scaling.
        gradients: per trainable variable; None where the loss does not depend on it.
        readers: the products that read weights in the backward pass; None where forms
            that suit XLA are not used.
    """

    y_pred: Structure
    loss: Tensor
    gradients: list[Gradient | None]
    readers: one_kernel.BackwardReaders | None

    def by_index(self, context: Context) -> dict[int, Gradient]:
        """The gradients that there are, by their index among the rule's weights."""
        if not self.gradients:
            return {}
        pairs = zip(context.indices, self.gradients, strict=True)
        return {i: g for i, g in pairs if g is not None}


def backward(
    context: Context,
    scope: Scope,
    data: Parts,
    num_examples: int | Tensor,
    lowered: bool,
) -> BackwardResult:
    """The loss of a group and its gradients; the loss tracker gets the loss.

    Args:
        context: the update.
        scope: open, with the weights to use.
        data: `(x, y, sample_weight)` of the group.
        num_examples: in the group.
        lowered: whether forms that suit XLA are used.
    """
    model, (x, y, sample_weight) = context.model, data
    with scope.record() as tape:
        y_pred = keras_model.forward(model, x)
        loss = keras_model.compute_loss(model, x, y, y_pred, sample_weight)
        tracker = keras_model.loss_tracker(model)
        if tracker is not None:
            tracker.update_state(loss, sample_weight=num_examples)
        scaled = context.outer.scale_loss(loss)
    if not context.carry.trainable:
        return BackwardResult(y_pred, loss, [], None)
    readers = one_kernel.BackwardReaders() if lowered else None
    tensors = scope.gradients(tape, scaled)
    gradients = [as_gradient(t, factored_norms=lowered) for t in tensors]
    return BackwardResult(y_pred, loss, gradients, readers)


def _check_gradients(
    gradients: Sequence[Gradient | None], trainable: Sequence[Variable]
) -> None:
    # Raises where no variable has a gradient; warns of those without.
    pairs = zip(gradients, trainable, strict=True)
    missing = [v.path for g, v in pairs if g is None]
    if len(missing) == len(gradients):
        raise ValueError(
            "The loss must depend on at least one trainable variable. Received: no "
            f"gradient for any of {missing}. Check `loss` in compile() and "
            "`compute_loss`."
        )
    if missing:
        warnings.warn(
            f"Gradients do not exist for variables {missing} when minimizing the loss; "
            "they are left as they are. If that is not meant, check `loss` in "
            "compile()."
        )


def apply_rule(
    context: Context,
    scope: Scope,
    found: BackwardResult,
    guard: Guard | None,
    shown: Shown | None,
) -> tuple[State, Shown | None]:
    """Applies the rule, and puts new weights and state into the scope.

    Args:
        context: the update.
        scope: open.
        found: by the backward pass.
        guard: None under nonfinite="propagate".
        shown: weights whose updates wait, if there are any.

    Returns:
        The state that the rule began with; the weights that wait, after this update.
    """
    before = context.variables.read(scope)
    if not context.carry.trainable:
        warnings.warn("The model does not have any trainable weights.")
        return before, shown
    _check_gradients(found.gradients, context.carry.trainable)
    gradients = found.by_index(context)
    may_change = None
    if guard is not None:
        gradients = guard.gradients(context.rule, gradients)
        may_change = guard.may_change(context.rule, before)
    rate = tf.convert_to_tensor(context.optimizer.learning_rate)
    rates = [rate] * len(before.weights)
    if found.readers is not None:
        for i in gradients:
            rates[i] = found.readers.rate_after(before.weights[i], rate)
    begun = Update(
        before,
        gradients,
        rates,
        may_change,
        numbers=context.numbers,
        loss=found.loss,
    )
    updated = _updated(context, scope, begun, shown)
    applies = updated.applies
    if shown is not None:
        shown = shown.step(updated.waiting, updated.learning_rates, applies)
    context.variables.write(scope, updated.state)
    if context.counts is not None:
        (counts,) = scope.values([context.counts])
        counts = running_sums.counted(counts, updated.capped, found.loss, applies)
        scope.add_update((context.counts, counts))
    if context.progress is not None:
        (sums,) = scope.values([context.progress])
        sums = running_sums.with_loss(sums, found.loss, before.iterations, applies)
        scope.add_update((context.progress, sums))
    return before, shown


def _updated(
    context: Context, scope: Scope, begun: Update, shown: Shown | None
) -> Updated:
    # Under a LossScaleOptimizer its state goes into the scope, too.
    apart = frozenset[int]() if shown is None else shown.weights
    outer = context.outer
    if outer is context.optimizer:
        return context.rule(begun, apart)
    variables = (outer.step_counter, outer.dynamic_scale)
    loss_scale = LossScale(*scope.values(variables))
    steps = outer.dynamic_growth_steps
    updated, new = apply_scaled(context.rule, begun, loss_scale, steps, apart)
    for pair in zip(variables, new, strict=True):
        scope.add_update(pair)
    return updated


def _guard(context: Context, found: BackwardResult, skips: Skips) -> Guard:
    # A gradient that is too large for loss scaling is Keras's to skip.
    looked_at = found.gradients if context.outer is context.optimizer else []
    return Guard.of(first_cause(found.loss, looked_at), skips, context.raises)


def _product(
    context: Context,
    scope: Scope,
    values: Values,
    shown: Shown | None,
    variable: Variable,
    inputs: Tensor,
) -> Tensor | None:
    # With a kernel that waits; None for any other variable.
    if not scope.is_here():
        return None
    reads = context.blocks.new_reads(variable, inputs, values)
    if reads:
        every = context.carry.variables
        raise TraceAgain(
            kernels={
                kernel: None if found is None else [every[i] for i in found]
                for kernel, found in reads.items()
            }
        )
    if not isinstance(shown, ShownBlock) or scope.has_product(variable):
        return None
    product = shown.multiplied(variable)
    if product is None:
        return None
    scope.product_leaf(variable, *product)
    return scope.watched_inputs(variable, inputs) + product[1]


def _chosen(
    context: Context, guard: Guard, new: Values, old: Values, before: State
) -> Values:
    # Values to go on with. Between those of its own variables the rule has chosen,
    # unless the model assigned to them before.
    columns = (before.weights, *before.slots.values())
    at_rule = {id(value) for column in columns for value in column}
    of_rule = {id(v) for row in context.variables.rows for v in row}
    pairs = enumerate(zip(context.carry.variables, old, strict=True))
    chosen = {i for i, (v, x) in pairs if id(v) in of_rule and id(x) in at_rule}
    counter = context.variables.iterations
    return guard.choose(context.carry.variables, new, old, counter, chosen)


def record_group(
    context: Context,
    scope: Scope,
    y: Structure,
    found: BackwardResult,
    skip: Tensor | None,
) -> Record | tuple[()]:
    """The record of a group, before its update; () where no `ExampleLog` wants one.

    Args:
        context: the update.
        scope: open, with the weights before the update.
        y: of the group.
        found: by the backward pass.
        skip: () bool, whether the group must change nothing, or None.
    """
    recorder: Recorder | None = context.recorder
    if recorder is None:
        return ()
    numbers = [found.loss, _unweighted(context, scope, y, found)]
    if recorder.wanted.gradient_norm:
        one = tf.ones((), found.loss.dtype)
        scale = tf.cast(context.outer.scale_loss(one), tf.float32)
        numbers.append(gradient_norm(found.gradients) / scale)
    outputs: list[Any] = []
    if recorder.wanted.prediction:
        outputs = [_as_numpy_can(t) for t in keras.tree.flatten(found.y_pred)]
        recorder.see_outputs(found.y_pred, outputs)
    return record(numbers, outputs, skip)


def _unweighted(
    context: Context, scope: Scope, y: Structure, found: BackwardResult
) -> Structure:
    # In a scope of its own, so that Keras counts each loss of several outputs once.
    variables = context.carry.variables
    pairs = [(v, scope.get_current_value(v)) for v in variables]
    with keras.StatelessScope(state_mapping=pairs):
        loss = keras_model.compiled_loss(context.model, y, found.y_pred)
    return found.loss if loss is None else loss


def _as_numpy_can(tensor: Tensor) -> Tensor:
    # Files of NumPy know no bfloat16.
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
