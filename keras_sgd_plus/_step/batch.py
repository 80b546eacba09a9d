"""One train step, from the batch that Keras hands over to its logs.

    check -> build -> walk -> commit -> logs

A trace may find facts that the next one has to know; then build and walk are done
again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from keras_sgd_plus import _lowering
from keras_sgd_plus._distribute import replicas, strategy
from keras_sgd_plus._loop import Carry, ExampleUpdate, TraceAgain, examples
from keras_sgd_plus._nonfinite import Ledger, ledgers, places
from keras_sgd_plus._private import keras_model, xla
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor, Variable
from keras_sgd_plus._records import progress, recorders
from keras_sgd_plus._rule import capped_share, compiled_for
from keras_sgd_plus._step import checks, model_checks, record_batch, warn
from keras_sgd_plus._step.walk_batch import WalkedBatch, walk_batch

# Each failed trace reveals one kind of missing, direct or whole variable; 9 allow for
# all.
_MAX_TRACES = 9

# Compiled steps of callers outside tf.function: model -> optimizer -> `_KeptStep`. Keys
# are weak and steps hold weak references, so nothing is kept alive; it is not on the
# optimizer because Keras's saver walks every attribute of one.
_steps: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def run(optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure) -> Any:
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
    checks.rectangular(data)
    with recorders.watched(optimizer):
        with ledgers.watched(optimizer):
            # Replicas cannot meet inside functions of their own.
            is_plain = model.run_eagerly or strategy.num_replicas() > 1
            step = train_step if is_plain else _kept_step
            logs = step(optimizer, outer, model, data)
        ledgers.raise_if_ended(optimizer)
    return logs


def train_step(
    optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure
) -> Any:
    """One train step, as it is traced or run eagerly. Arguments are those of `run`."""
    # 1. Check the batch and the settings, before the model is touched.
    strategy.check()
    strategy.check_replica()
    num_replicas = strategy.num_replicas()
    if num_replicas > 1:
        model_checks.replicas(model, optimizer, num_replicas)
    checks.batched(model, data)
    checks.kinds(model, data)
    batch = examples.unpack(data)
    num_examples, assertions = checks.batch(examples.named_leaves(batch))
    model_checks.batch_size(model, optimizer.examples_per_update)
    record_batch.check(model, optimizer, batch)
    batch = examples.waiting_for(assertions, batch)
    # 2. Build missing variables, and walk, until a trace needs no further fact.
    facts = _Facts()
    for _ in range(_MAX_TRACES):
        try:
            done = _attempt(optimizer, outer, model, batch, num_examples, facts)
        except TraceAgain as found:
            facts.add(found)
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


@dataclass
class _Facts:
    # Facts that earlier traces of this batch have found.
    variables: dict[int, Variable] = field(default_factory=dict)
    reasons: dict[int, str | None] = field(default_factory=dict)
    kernels: dict[int, Any] = field(default_factory=dict)
    direct: dict[int, Variable] = field(default_factory=dict)
    was_called: bool = False  # the model, once, to create its variables

    def add(self, found: TraceAgain) -> None:
        self.variables.update({id(v): v for v in found.variables})
        self.reasons.update(found.reasons)
        self.kernels.update(found.kernels)
        self.direct.update({id(v): v for v in found.direct})


class _Attempt(NamedTuple):
    # A batch that was walked, and is not committed.
    update: ExampleUpdate
    ledger: Ledger | None
    iterations: Tensor  # () int64, raw, before the batch
    start: Mapping[int, Tensor]  # where this replica does not start from the variables
    walked: WalkedBatch


def _attempt(
    optimizer: Optimizer,
    outer: Optimizer,
    model: Model,
    batch: Structure,
    num_examples: Tensor,
    facts: _Facts,
) -> _Attempt:
    group = examples.specs(batch, optimizer.examples_per_update)
    keras_model.build(model, outer, group)  # a loop may create no variable
    extras = [*facts.variables.values(), *capped_share.variables(optimizer)]
    if strategy.num_replicas() == 1:
        extras.append(progress.of(optimizer))
    carry = Carry(model, outer, extras)
    update = ExampleUpdate.of(
        model,
        optimizer,
        outer,
        carry,
        batch,
        facts.reasons,
        facts.kernels,
        facts.direct.values(),
    )
    ledger = ledgers.of(optimizer)
    if ledger is not None:
        ledger.causes = ["loss", *(v.path for v in carry.trainable)]
    iterations = tf.convert_to_tensor(update.variables.iterations.value)
    start = replicas.seeds_of_replica(carry.variables)
    skip_all = None if ledger is None else ledger.skip_all()
    walked = walk_batch(update, num_examples, start, skip_all)
    return _Attempt(update, ledger, iterations, start, walked)


def _commit(done: _Attempt, num_examples: Tensor) -> Any:
    # Writes the variables; gives the logs.
    update, ledger, walked = done.update, done.ledger, done.walked
    notes = sizes = None
    if strategy.num_replicas() > 1:
        logs, notes, sizes = _average(done, num_examples)
    else:
        update.carry.commit(walked.changed)
        stock = update.model.get_metrics_result
        logs = walked.logs if update.keeps_logs else stock()
    place = next_place = None
    if ledger is not None or update.recorder is not None:
        next_place = places.variable_of(update.optimizer)
        place = next_place.read_value()
    record_batch.close(update, walked, place, done.iterations, num_examples, sizes)
    if update.counts is not None:
        logs = capped_share.with_share(logs, update.counts)
        warn.watch_negative(update.model, update.counts)
    logs = ledgers.close(ledger, place, done.iterations, walked.skips, logs, notes)
    # The replicas of a process come here one after the other.
    if next_place is not None and strategy.is_last_here():
        next_place.assign_add([0, 0, 1])
    return logs


def _average(done: _Attempt, num_examples: Tensor) -> tuple[Any, Any, Any]:
    # Averages over the replicas and commits; the logs, all replicas' notes and sizes.
    update, ledger, walked = done.update, done.ledger, done.walked
    model, outer, variables = update.model, update.outer, update.carry.variables
    changed = walked.changed
    if tf.executing_eagerly():  # a replica without examples has changed nothing
        whole = dict(enumerate(update.carry.read()))
        changed = {**whole, **done.start, **changed}
    shard = replicas.ShardResult(variables, dict(done.start), changed, num_examples)
    note = tf.zeros((0,), tf.int64)
    if ledger is not None:
        note = ledger.note(walked.skips)
    is_scaled = outer is not update.optimizer
    smallest = (outer.step_counter, outer.dynamic_scale) if is_scaled else ()
    if update.keeps_logs:
        parts = replicas.log_parts(walked.logs, shard)
    else:
        parts = replicas.metric_parts(model, shard)
    averaged = replicas.average(shard, note, parts, smallest)
    new = averaged.changed
    if update.raises:
        has_ended = tf.reduce_any(averaged.notes[:, 0] > 0)
        new = replicas.unchanged_where(has_ended, variables, new)
    replicas.commit(variables, new)
    if update.keeps_logs:
        logs = replicas.mean_logs(walked.logs, averaged)
    else:
        logs = replicas.metrics(model, shard, averaged.sums)
    return logs, averaged.notes, averaged.sizes


class _KeptStep(NamedTuple):
    # A compiled step, for these variables and settings alone.
    variables: list[weakref.ref[Any]]
    settings: tuple[Any, ...]
    step: Any


def _kept_step(
    optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure
) -> Any:
    # A tf.function of the step is kept until the model is compiled anew, or gets or
    # loses a variable. The first call may build the model, so they are noted after it.
    per_model = _steps.setdefault(model, weakref.WeakKeyDictionary())
    settings = (
        *compiled_for(optimizer, _lowering.is_switched_off()),
        recorders.settings(optimizer),
    )
    kept: _KeptStep | None = per_model.get(optimizer)
    current = _variables(model)
    if kept is not None and kept.settings == settings:
        same_number = len(kept.variables) == len(current)
        pairs = zip(kept.variables, current, strict=False)
        if same_number and all(ref() is v for ref, v in pairs):
            return kept.step(data)
    refs = [weakref.ref(o) for o in (optimizer, outer, model)]

    def step_fn(data: Structure) -> Any:
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


def _variables(model: Model) -> list[Any]:
    # The trainable ones once more: freezing a layer asks for a new trace.
    return [*model.trainable_variables, *model.variables, *model.metrics_variables]
