"""One train step, from the batch that Keras hands over to its logs.

    check -> build -> walk -> commit -> logs

A trace may find facts that the next one has to know; then build and walk are done
again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._advice import notices
from keras_sgd_plus._batch import checks
from keras_sgd_plus._batch.walk_batch import walk_batch
from keras_sgd_plus._forms import tracing
from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.context import Context
from keras_sgd_plus._loop.scope import Carry, Facts, TraceAgain
from keras_sgd_plus._loop.update import Logs
from keras_sgd_plus._loop.walk import Walked
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private.types import (
    Model,
    Optimizer,
    Parts,
    PerObject,
    Structure,
    Tensor,
    Variable,
)
from keras_sgd_plus._report import bad_examples, channel, records, running_sums
from keras_sgd_plus._report.bad_examples import Ledger
from keras_sgd_plus._report.records import Recorder, Step
from keras_sgd_plus._rule.rule import compiled_for

# Each failed trace reveals one kind of missing, direct or whole variable; 9 allow for
# all.
_MAX_TRACES = 9

# Compiled steps of callers outside tf.function: model -> optimizer -> `_KeptStep`.
_steps: PerObject[Any] = PerObject(weakref.WeakKeyDictionary)


def run(optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure) -> Logs:
    """Trains `model` on one batch, an update per group of examples; returns the logs.

    Called while Keras traces its train function, by hand inside a `tf.function`, or
    eagerly, where a compiled step is kept per model.

    Args:
        optimizer: the SGDPlus.
        outer: the `LossScaleOptimizer` around it, or the same object again.
        model: the model to train.
        data: `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
    """
    if not tf.executing_eagerly():
        return train_step(optimizer, outer, model, data)
    checks.check_rectangular(data)
    # Replicas cannot meet inside functions of their own.
    is_plain = model.run_eagerly or replicas.num_replicas() > 1
    step = train_step if is_plain else _kept_step
    with channel.watched(optimizer):
        return step(optimizer, outer, model, data)


def train_step(
    optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure
) -> Logs:
    """One train step, as it is traced or run eagerly. Arguments are those of `run`."""
    # 1. Check the batch and the settings, before the model is touched.
    replicas.check()
    replicas.check_replica()
    num_replicas = replicas.num_replicas()
    if num_replicas > 1:
        checks.check_replicas(model, optimizer, num_replicas)
    checks.check_batched(model, data)
    checks.check_kinds(model, data)
    batch = examples.unpack(data)
    num_examples, assertions = checks.check_batch(examples.named_leaves(batch))
    checks.check_batch_size(model, optimizer.examples_per_update)
    _check_records(model, optimizer, batch)
    batch = examples.waiting_for(assertions, batch)
    # 2. Build missing variables, and walk, until a trace needs no further fact.
    facts = Facts()
    for _ in range(_MAX_TRACES):
        try:
            done = _attempt(optimizer, outer, model, batch, num_examples, facts)
        except TraceAgain as found:
            facts.add(found.found)
            continue
        except (ValueError, RuntimeError) as error:  # the second before Keras 3.14
            if facts.was_called or not keras_model.refused_variable(error):
                raise
            size = optimizer.examples_per_update
            keras_model.trace_once(model, examples.specs(batch, size))
            facts.was_called = True
            continue
        # 3. Commit the values that the compiled function has not committed itself.
        return _commit(done, num_examples)
    paths = [v.path for v in facts.variables.values()]
    raise RuntimeError(
        "Every variable that the model writes must exist before training. Received: "
        f"variables made anew at each call: {paths}. Create them in __init__ or build."
    )


class _Attempt(NamedTuple):
    # A batch that was walked, and is not committed.
    context: Context
    ledger: Ledger | None
    iterations: Tensor  # () int64, raw, before the batch
    start: Mapping[int, Tensor]  # where this replica does not start from the variables
    walked: Walked


def _attempt(
    optimizer: Optimizer,
    outer: Optimizer,
    model: Model,
    batch: Parts,
    num_examples: int | Tensor,
    facts: Facts,
) -> _Attempt:
    group = examples.specs(batch, optimizer.examples_per_update)
    keras_model.build(model, outer, group)  # a loop may create no variable
    extras = [*facts.variables.values(), *running_sums.carried(optimizer)]
    carry = Carry(model, outer, extras)
    context = Context.of(model, optimizer, outer, carry, batch, facts)
    ledger = bad_examples.ledger_of(optimizer)
    if ledger is not None:
        ledger.causes = ["loss", *(v.path for v in carry.trainable)]
    iterations = tf.convert_to_tensor(context.variables.iterations.value)
    start = replicas.seeds_of_replica(carry.variables)
    skip_all = None if ledger is None else ledger.skip_all()
    walked = walk_batch(context, num_examples, start, skip_all)
    return _Attempt(context, ledger, iterations, start, walked)


def _commit(done: _Attempt, num_examples: int | Tensor) -> Logs:
    # Writes the variables; gives the logs.
    context, ledger, walked = done.context, done.ledger, done.walked
    notes = sizes = None
    if replicas.num_replicas() > 1:
        logs, notes, sizes = _average(done, num_examples)
    else:
        context.carry.commit(walked.changed)
        stock = context.model.get_metrics_result
        logs = walked.logs if context.keeps_logs else stock()
    if context.counts is not None:
        logs = running_sums.with_share(logs, context.counts)
        notices.watch_negative(context.model, context.counts)
    if ledger is None and context.recorder is None:
        return logs
    next_place = bad_examples.place_of(context.optimizer)
    place = next_place.read_value()
    if context.recorder is not None:
        _close_records(context.recorder, done, num_examples, place, sizes)
    if ledger is not None:
        logs = ledger.close(place, done.iterations, walked.skips, logs, notes)
    # The replicas of a process come here one after the other.
    if replicas.is_last_here():
        next_place.assign_add([0, 0, 1])
    return logs


def _average(done: _Attempt, num_examples: int | Tensor) -> tuple[Logs, Tensor, Tensor]:
    # Averages over the replicas and commits; the logs, all replicas' notes and sizes.
    context, ledger, walked = done.context, done.ledger, done.walked
    model, outer, variables = context.model, context.outer, context.carry.variables
    changed = walked.changed
    if tf.executing_eagerly():  # a replica without examples has changed nothing
        whole = dict(enumerate(context.carry.read()))
        changed = {**whole, **done.start, **changed}
    shard = replicas.ShardResult(variables, dict(done.start), changed, num_examples)
    note = tf.zeros((0,), tf.int64)
    if ledger is not None:
        note = ledger.note(walked.skips)
    is_scaled = outer is not context.optimizer
    smallest = (outer.step_counter, outer.dynamic_scale) if is_scaled else ()
    if context.keeps_logs:
        parts = replicas.log_parts(walked.logs, shard)
    else:
        parts = replicas.metric_parts(model, shard)
    averaged = replicas.average(shard, note, parts, smallest)
    new = averaged.changed
    if context.raises:
        has_ended = tf.reduce_any(averaged.notes[:, 0] > 0)
        new = replicas.unchanged_where(has_ended, variables, new)
    replicas.commit(variables, new)
    if context.keeps_logs:
        logs = replicas.mean_logs(walked.logs, averaged)
    else:
        logs = replicas.metrics(model, shard, averaged.sums)
    return logs, averaged.notes, averaged.sizes


def _check_records(model: Model, optimizer: Optimizer, batch: Parts) -> None:
    # Raises where the records that a log asks for cannot be made.
    recorder = records.recorder_of(optimizer)
    if recorder is None:
        return
    if _is_compiled(model) and model.steps_per_execution > 1:
        raise NotImplementedError(
            "ExampleLog must be used without steps_per_execution where Keras compiles "
            "the whole train step. Received: jit_compile=True and steps_per_execution="
            f"{model.steps_per_execution}. Use compile(..., jit_compile=False); "
            "SGDPlus compiles its loop all the same."
        )
    if recorder.wanted.id is not None:
        records.ids_of(batch[0], recorder.wanted.id)


def _close_records(
    recorder: Recorder,
    done: _Attempt,
    num_examples: int | Tensor,
    place: Tensor,
    sizes: Tensor | None,
) -> None:
    # Hands the records of a batch to the recorder. `sizes`, (replicas,) int64, are the
    # examples of each; None with one replica.
    context, walked, model = done.context, done.walked, done.context.model
    replica, size, before = 0, num_examples, 0
    if sizes is not None:
        replica, size = replicas.local_replica(), tf.reduce_sum(sizes)
        before = tf.reduce_sum(sizes[: replicas.replica()])
    group_size, key = context.group_size, recorder.wanted.id
    numbers = [done.iterations, num_examples, group_size, size, before]
    in_order, batches = walked.order is None, model.steps_per_execution
    step = Step(replica, in_order, group_size, batches, _is_compiled(model))
    ids = None if key is None else records.ids_of(context.batch[0], key)
    header = [*numbers, *tf.unstack(place)]
    recorder.close(step, header, walked.records, walked.order, ids)


def _is_compiled(model: Model) -> bool:
    # Whether XLA takes the whole step.
    return bool(model.jit_compile) and not tf.executing_eagerly()


class _KeptStep(NamedTuple):
    # A compiled step, for these variables and settings alone.
    variables: list[weakref.ref[Variable]]
    settings: tuple[object, ...]
    step: Callable[..., Logs]


def _kept_step(
    optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure
) -> Any:
    # A tf.function of the step is kept until the model is compiled anew, or gets or
    # loses a variable. The first call may build the model, so they are noted after it.
    per_model = _steps[model]
    settings = (
        *compiled_for(optimizer, tracing.is_switched_off()),
        records.wanted_of(optimizer),
    )
    kept: _KeptStep | None = per_model.get(optimizer)
    current = _variables(model)
    if kept is not None and kept.settings == settings:
        same_number = len(kept.variables) == len(current)
        pairs = zip(kept.variables, current, strict=False)
        if same_number and all(ref() is v for ref, v in pairs):
            return kept.step(data)
    refs = [weakref.ref(o) for o in (optimizer, outer, model)]

    def step_fn(data: Structure) -> Logs:
        optimizer, outer, model = (ref() for ref in refs)
        return train_step(optimizer, outer, model, data)

    with xla.functions_traced() as seen:
        step = tf.function(step_fn, autograph=False, reduce_retracing=True)
        try:
            logs = step(data)
        except xla.MAYBE_OF_XLA:
            text = xla.error_of_any(seen)
            if text is None or optimizer.jit_compile != "auto":
                raise
            xla.refuse(model, text)
            step = tf.function(step_fn, autograph=False, reduce_retracing=True)
            logs = step(data)
    variables = [weakref.ref(v) for v in _variables(model)]
    per_model[optimizer] = _KeptStep(variables, settings, step)
    return logs


def _variables(model: Model) -> list[Variable]:
    # The trainable ones once more: freezing a layer asks for a new trace.
    return [*model.trainable_variables, *model.variables, *model.metrics_variables]
