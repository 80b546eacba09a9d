"""One train step: check the batch, build, walk it in its order, commit, log."""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from keras_sgd_plus import (
    _checks,
    _compile,
    _examples,
    _group,
    _keras,
    _ledger,
    _loop,
    _lowering,
    _messages,
    _order,
    _plan,
    _replicas,
    _strategy,
    _watch,
)
from keras_sgd_plus._state import Carry

_MAX_TRACES = 7  # a trace may find what the next one has to know

# Compiled steps of callers outside tf.function: model -> optimizer -> (state, step).
# Keys are weak and steps hold weak references, so nothing is kept alive; it is not on
# the optimizer because Keras's saver walks every attribute of one.
_steps: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def run(optimizer: Any, outer: Any, model: Any, data: Any) -> Any:
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
        return _run(optimizer, outer, model, data)
    _checks.rectangular(data)
    with _ledger.watched(optimizer):
        # Replicas cannot meet inside functions of their own.
        is_plain = model.run_eagerly or _strategy.num_replicas() > 1
        step = _run if is_plain else _eager_step
        logs = step(optimizer, outer, model, data)
    _ledger.raise_fault(optimizer)
    return logs


def _run(optimizer: Any, outer: Any, model: Any, data: Any) -> Any:
    # 1. Check what can be known before the model is touched.
    _strategy.check()
    _strategy.check_replica()
    num_replicas = _strategy.num_replicas()
    if num_replicas > 1:
        _checks.replicas(model, optimizer, num_replicas)
    _checks.kinds(model, data)
    batch = _examples.unpack(data)
    # A replica may have no examples in the last batch.
    named, may_be_empty = _examples.named_leaves(batch), num_replicas > 1
    num_examples, checks = _checks.batch(named, may_be_empty)
    _checks.model(model, optimizer.examples_per_update)
    batch = _examples.waiting_for(checks, batch)
    group = _examples.specs(batch, optimizer.examples_per_update)
    extras: dict[int, Any] = {}
    known: dict[int, str | None] = {}
    for attempt in range(_MAX_TRACES):
        try:
            # 2. Build whatever has no variables yet: a loop may create none.
            _keras.build(model, outer, group)
            # 3. Walk; a trace that wrote unknown variables is done again with them.
            carry = Carry(model, outer, extras.values())
            update = _group.Update(model, optimizer, outer, carry, batch, known)
            ledger = _ledger.open_for(update)
            before = tf.convert_to_tensor(_keras.raw_iterations(optimizer).value)
            start = _replicas.folded_seeds(carry)
            changed, (logs, faults) = _walk(update, batch, num_examples, ledger, start)
        except _group.UndeclaredState as found:
            extras.update({id(v): v for v in found.variables})
            continue
        except _plan.Replan as found:
            known.update(found.reasons)
            continue
        except ValueError as error:
            if attempt or not _keras.is_about_creation(error):
                raise
            _keras.trace_once(model, batch)
            continue
        # 4. Commit what the compiled function has not committed itself.
        if num_replicas > 1:
            if tf.executing_eagerly():  # a part of none has walked nothing
                whole = dict(enumerate(carry.read()))
                changed = {**whole, **start, **changed}
            walked = _replicas.Walked(carry, start, changed, num_examples)
            logs, notes = _meet(update, walked, ledger, logs, faults)
        else:
            carry.commit(changed)
            logs = logs if update.keeps_logs else model.get_metrics_result()
            notes = None
        return logs if ledger is None else ledger.close(before, faults, logs, notes)
    raise RuntimeError(_messages.undeclared_state([v.path for v in extras.values()]))


def _meet(
    update: _group.Update, walked: _replicas.Walked, ledger: Any, logs: Any, faults: Any
) -> tuple[Any, Any]:
    """Averages over the replicas and commits; gives the logs and notes of all."""
    model, outer = update.model, update.outer
    note = tf.zeros((0,), tf.int64) if ledger is None else ledger.note(faults)
    is_scaled = outer is not update.optimizer
    smallest = (outer.step_counter, outer.dynamic_scale) if is_scaled else ()
    if update.keeps_logs:
        parts = _replicas.log_parts(logs, walked)
    else:
        parts = _replicas.metric_parts(model, walked)
    met = _replicas.meet(walked, note, parts, smallest)
    changed = met.changed
    if update.raises:
        is_over = tf.reduce_any(met.notes[:, 0] > 0)
        changed = _replicas.held(walked.carry, changed, is_over)
    _replicas.commit(walked.carry, changed)
    if update.keeps_logs:
        return _replicas.mean_logs(logs, met), met.notes
    return _replicas.metrics(model, walked, met.sums), met.notes


def _walk(
    update: _group.Update,
    batch: Any,
    num_examples: Any,
    ledger: Any,
    start: dict[int, Any],
) -> tuple[dict[int, Any], tuple[Any, Any]]:
    """Walks a batch; gives what is left to commit, by position, and logs and faults."""
    model, optimizer = update.model, update.optimizer
    group_size = optimizer.examples_per_update
    leaves = _examples.flat(batch)
    for topic, text in _checks.doubts(model, batch[2], group_size):
        _watch.warn_once(model, topic, text)
    specs = _loop.log_specs(update, leaves)
    use_xla = _compile.wants_xla(optimizer.jit_compile, model, leaves)
    if group_size > 1 and not model.jit_compile:
        _watch.watch_groups(model, group_size, num_examples)
    warning = update.plan.warning()
    if warning is not None and use_xla and _lowering.is_on():
        _watch.warn_once(model, "tables", warning)
    order = []
    if optimizer.order == "reshuffle":
        counter = _keras.raw_iterations(optimizer).value
        seed = _replicas.fold(optimizer.seed, 63)
        order = [_order.visiting_order(seed, counter, num_examples)]
    padded = [*leaves, *order]
    if use_xla and not model.jit_compile:  # else Keras compiles, for each batch size
        _watch.watch_shapes(model, leaves)
        if not isinstance(num_examples, int) or not num_examples:
            # A power of two of examples: one compilation serves many batch sizes. XLA
            # takes none at all badly.
            size = _examples.bucket(num_examples)
            padded = [_examples.pad(tensor, size) for tensor in padded]

    def full_groups(
        values: Any, num_examples: Any, is_halted: Any, *padded: Any
    ) -> Any:
        examples, order = padded[: len(leaves)], (*padded[len(leaves) :], None)[0]
        return _loop.walk(
            update,
            values,
            examples,
            order,
            num_examples,
            specs,
            runner.use_xla,
            None if ledger is None else is_halted,
        )

    rest = num_examples % group_size
    runner = _compile.Runner(
        update,
        use_xla,
        optimizer.jit_compile,
        in_place=group_size == 1 or (isinstance(rest, int) and not rest),
    )
    is_halted = tf.constant(False) if ledger is None else ledger.is_halted()
    arguments = [tf.convert_to_tensor(num_examples), is_halted, *padded]
    changed, result = runner(full_groups, start, arguments)
    if group_size == 1:
        return changed, result

    # What is left over is one shorter group, with a shape of its own.
    def short_group() -> Any:
        positions = tf.range(num_examples - rest, num_examples)
        if order:
            positions = tf.gather(order[0], positions)
        group = [_examples.take(leaf, positions) for leaf in leaves]

        def walk(values: Any, positions: Any, *others: Any) -> Any:
            logs, faults = tf.nest.pack_sequence_as(result, others[len(leaves) :])
            group = others[: len(leaves)]
            return _loop.walk_group(update, values, group, positions, logs, faults)

        others = [*group, *tf.nest.flatten(result)]
        return runner(walk, {**start, **changed}, [positions, *others])

    if isinstance(rest, int):
        return short_group() if rest else (changed, result)
    return tf.cond(rest > 0, short_group, lambda: (changed, result))


def _eager_step(optimizer: Any, outer: Any, model: Any, data: Any) -> Any:
    # A tf.function of the step is kept until the model is compiled anew, or gets or
    # loses a variable. The first call may build the model, so they are noted after it.
    per_model = _steps.setdefault(model, weakref.WeakKeyDictionary())
    settings = optimizer.loop_settings()
    variables, known_settings, step = per_model.get(optimizer, ((), None, None))
    current = _variables(model)
    if settings == known_settings and len(variables) == len(current):
        if all(ref() is v for ref, v in zip(variables, current, strict=True)):
            return step(data)
    refs = [weakref.ref(o) for o in (optimizer, outer, model)]

    def step_fn(data: Any) -> Any:
        optimizer, outer, model = (ref() for ref in refs)
        return _run(optimizer, outer, model, data)

    step = tf.function(step_fn, autograph=False, reduce_retracing=True)
    logs = step(data)
    noted = [weakref.ref(v) for v in _variables(model)]
    per_model[optimizer] = (noted, settings, step)
    return logs


def _variables(model: Any) -> list[Any]:
    # The trainable ones once more: freezing a layer asks for a new trace.
    return [*model.trainable_variables, *model.variables, *model.metrics_variables]
