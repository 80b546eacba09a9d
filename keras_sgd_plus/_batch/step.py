"""One train step, from the batch that Keras hands over to its logs.

    check -> build -> walk -> commit -> logs

A trace may find facts that the next one has to know; then build and walk are done
again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from keras_sgd_plus._replicas import Settled, Shard
from keras_sgd_plus._report import bad_examples, channel, records, running_sums
from keras_sgd_plus._report.bad_examples import Ledger
from keras_sgd_plus._report.records import Recorder, Step
from keras_sgd_plus._rule.rule import compiled_for

# Each failed trace reveals one kind of missing, direct or whole variable, or one class
# of layers that XLA refuses.
_MAX_TRACES = 20

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
    is_plain = model.run_eagerly or not replicas.current().meet_in_functions
    step = train_step if is_plain else _kept_step
    with channel.watched(optimizer):
        return step(optimizer, outer, model, data)


class _Observer(threading.local):
    def __init__(self) -> None:
        self.see: Callable[[Sequence[Variable]], None] | None = None


_observer = _Observer()


@contextlib.contextmanager
def observed(see: Callable[[Sequence[Variable]], None]) -> Iterator[None]:
    """Shows this thread's steps' variables to `see`, before a batch changes them."""
    _observer.see = see
    try:
        yield
    finally:
        _observer.see = None


def train_step(
    optimizer: Optimizer, outer: Optimizer, model: Model, data: Structure
) -> Logs:
    """One train step, as it is traced or run eagerly. Arguments are those of `run`."""
    # 1. Check the batch and the settings, before the model is touched.
    replicas.check()
    replicas.current().check(model, optimizer)
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
    order: Tensor | None  # (num_examples,) int32, or None, as of `walk_batch`


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
    if _observer.see is not None:
        with tf.init_scope():
            _observer.see(carry.variables)
    context = Context.of(model, optimizer, outer, carry, batch, facts)
    ledger = bad_examples.ledger_of(optimizer)
    if ledger is not None:
        ledger.causes = ["loss", *(v.path for v in carry.trainable)]
    iterations = tf.convert_to_tensor(context.variables.iterations.value)
    start = context.replicas.starts(carry.variables)
    skip_all = None if ledger is None else ledger.skip_all()
    walked, order = walk_batch(context, num_examples, start, skip_all)
    return _Attempt(context, ledger, iterations, start, walked, order)


def _commit(done: _Attempt, num_examples: int | Tensor) -> Logs:
    # Writes the variables; gives the logs.
    context, ledger, walked = done.context, done.ledger, done.walked
    outer, here = context.outer, context.replicas
    is_scaled = outer is not context.optimizer
    shard = Shard(
        variables=context.carry.variables,
        start=dict(done.start),
        changed=walked.changed,
        num_examples=num_examples,
        logs=walked.logs if context.keeps_logs else None,
        note=None if ledger is None else functools.partial(ledger.note, walked.skips),
        ends_training=context.raises,
        smallest=(outer.step_counter, outer.dynamic_scale) if is_scaled else (),
        commit=context.carry.commit,
    )
    settled = here.settle(context.model, shard)
    logs = settled.logs
    if context.counts is not None:
        logs = running_sums.with_share(logs, context.counts)
        notices.watch_negative(context.model, context.counts)
    if ledger is None and context.recorder is None:
        return logs
    next_place = bad_examples.place_of(context.optimizer)
    place = next_place.read_value()
    if context.recorder is not None:
        _close_records(context.recorder, done, shard, settled, place)
    if ledger is not None:
        notes = settled.notes
        logs = ledger.close(place, done.iterations, walked.skips, logs, notes)
    if here.is_last_here:  # the replicas of a process come here one after the other
        next_place.assign_add([0, 0, 1])
    return logs


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
    recorder: Recorder, done: _Attempt, shard: Shard, settled: Settled, place: Tensor
) -> None:
    # Hands the records of a batch to the recorder.
    context, walked, model = done.context, done.walked, done.context.model
    group_size, key = context.group_size, recorder.wanted.id
    sizes = [shard.num_examples, group_size, settled.size, settled.before]
    in_order, batches = done.order is None, model.steps_per_execution
    replica = context.replicas.number_here
    step = Step(replica, in_order, group_size, batches, _is_compiled(model))
    ids = None if key is None else records.ids_of(context.batch[0], key)
    header = [done.iterations, *sizes, *tf.unstack(place)]
    recorder.close(step, header, walked.records, done.order, ids)


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

    def call() -> tuple[Any, Logs]:
        step = tf.function(step_fn, autograph=False, reduce_retracing=True)
        return step, step(data)

    step, logs = xla.unless_refused(model, optimizer.jit_compile == "auto", call, call)
    variables = [weakref.ref(v) for v in _variables(model)]
    per_model[optimizer] = _KeptStep(variables, settings, step)
    return logs


def _variables(model: Model) -> list[Variable]:
    # The trainable ones once more: freezing a layer asks for a new trace.
    return [*model.trainable_variables, *model.variables, *model.metrics_variables]
