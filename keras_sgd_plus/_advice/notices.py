"""Advice on how an SGDPlus is used, each piece once per model or optimizer: `once`.

A train step is traced more than once, and a graph runs for every batch: whoever finds
something to say names its topic, and `once` knows who has been told of that. What is
looked for here is seen while steps run:

- in the graph: examples of many shapes, negative losses, uneven groups (`watch_*`);
- in `fit`: an optimizer whose loop was bypassed (`warn_of_bypass`), a schedule that
  ends within the first epoch (`report_schedule`), a first batch that compiles for long
  (`watched_first_call`).

Advice on training that goes wrong is in `learning`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import optimizers

from keras_sgd_plus._private import keras_model, keras_optimizer, keras_trainer, xla
from keras_sgd_plus._private.types import (
    Model,
    Optimizer,
    PerObject,
    Tensor,
    Variable,
)
from keras_sgd_plus._rule.ours import per_example, unwrap

MAX_SIGNATURES = 8  # shapes of an example that go without a warning


# The topics of which a model or an optimizer has had a warning.
_topics: PerObject[set[str]] = PerObject(set)
# The shapes of an example that a model has met.
_shapes: PerObject[set[tuple[int, ...]]] = PerObject(set)


def once(owner: Model | Optimizer, topic: str, text: str) -> None:
    """Warns unless this owner had a warning on the topic (traces may be repeated)."""
    _warn(_topics[owner], topic, text)


def _warn(topics: set[str], topic: str, text: str) -> None:
    if topic not in topics:
        topics.add(topic)
        warnings.warn(text)


@contextlib.contextmanager
def without_watching(model: Model) -> Iterator[None]:
    """While it is open, no batch of the model gives a warning of its values."""
    topics = _topics[model]
    added = {"groups", "negative"} - topics
    topics |= added
    try:
        yield
    finally:
        topics -= added


def _once_if(
    condition: Tensor,
    model: Model,
    topic: str,
    words: Callable[..., str],
    *values: Tensor | int,
) -> None:
    # Warns from the running graph where () bool says so, with the text that `words`
    # gives for values of that graph. The graph does not keep the model alive.
    topics = _topics[model]

    def say(*values: Tensor) -> np.int32:
        _warn(topics, topic, words(*values))
        return np.int32(0)

    def warn() -> Tensor:
        return tf.numpy_function(say, list(values), tf.int32)

    tf.cond(condition, warn, lambda: tf.constant(0))


def watch_shapes(model: Model, leaves: Sequence[Tensor]) -> None:
    """Warns once when a model was given examples of more than 8 shapes.

    XLA compiles the loop for each. Tracing sees every shape that it knows. Where Keras
    has relaxed a dimension to None, each batch calls Python to look at it.
    """
    name, topics, met = model.name, _topics[model], _shapes[model]

    def see(shape: Sequence[Any]) -> np.int32:
        met.add(tuple(int(d) for d in shape))
        if len(met) > MAX_SIGNATURES:
            text = (
                f"Model {name!r} was given examples of {len(met)} "
                "different shapes, and XLA compiles the per-example loop anew for "
                "each. Pad the examples to a few lengths (bucketing, "
                "`bucket_by_sequence_length` in tf.data)."
            )
            _warn(topics, "shapes", text)
        return np.int32(0)

    shapes = [leaf.shape[1:] for leaf in leaves]
    if all(shape.is_fully_defined() for shape in shapes):
        see([d for shape in shapes for d in shape])
    else:
        shape = tf.concat([tf.shape(leaf)[1:] for leaf in leaves], 0)
        tf.numpy_function(see, [shape], tf.int32)


def watch_negative(model: Model, counts: Variable) -> None:
    """Warns once when a loss was negative, which makes `max_loss_fraction` stop.

    Not where Keras compiles the whole step, which cannot call Python.

    Args:
        model: in training.
        counts: of `running_sums.capped_of`, after a batch.
    """
    if model.jit_compile and not tf.executing_eagerly():
        return
    text = (
        "With `max_loss_fraction` no loss must be below zero, which is taken for "
        f"the least that a loss can be. Received: model {model.name!r} with "
        f"loss={_loss_name(model)}, which was negative; such an update moves no "
        "weight. Add a constant that makes the loss positive, or use "
        "max_loss_fraction=None."
    )
    _once_if(counts.value[2] > 0, model, "negative", lambda: text)


def watch_groups(model: Model, group_size: int, num_examples: Any) -> None:
    """Warns once if groups of examples are not those that Keras would make.

    That is so if a batch is smaller than a group, or was not a multiple of it and yet
    another batch follows in the epoch, whose examples the loss tracker counts.
    """
    tracker = keras_model.loss_tracker(model)
    if tracker is None:
        return
    seen = tf.cast(tf.convert_to_tensor(tracker.count.value), tf.int64)
    size = tf.cast(num_examples, tf.int64)
    too_small = tf.equal(seen, 0) & (size < group_size)
    uneven: Any = tf.where(too_small, size, seen)
    uneven = tf.where(size > 0, uneven, 0)  # nothing follows yet

    def words(seen: int) -> str:
        return (
            "Every batch of an epoch but the last should be a multiple of "
            f"examples_per_update={group_size}. Received: a batch that ended after "
            f"{seen} examples with a group of {seen % group_size}, so the updates are "
            f"not those of batch_size={group_size}. Use a batch_size that {group_size} "
            "divides."
        )

    is_uneven = tf.not_equal(uneven % group_size, 0)
    _once_if(is_uneven, model, "groups", words, uneven)


def _loss_name(model: Model) -> str:
    # The `loss` of `compile`, as a message shows it.
    loss = getattr(model, "loss", None)
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None)
    return repr(loss if name is None else name)


# Optimizers that a `fit` used, and whose loop it went around. Keras calls
# `finalize_variable_values` of `model.optimizer` alone, at the end of `fit`. A model
# may hold others, in attributes, lists or nowhere at all. So an optimizer notes here
# that gradients were applied, and the end of `fit` looks at the notes. They are sticky,
# because Keras traces a train function once and keeps it between fits.
_engaged: weakref.WeakSet[Any] = weakref.WeakSet()
_applied: weakref.WeakSet[Any] = weakref.WeakSet()
# Model -> optimizers that were applied while it was fitted, by itself or a callback.
_of_fits: PerObject[weakref.WeakSet[Any]] = PerObject(weakref.WeakSet)

# Attributes in which TensorFlow and Keras keep what they track begin so.
_OF_TRACKING = ("_self_", "_tracker")


def note_engaged(optimizer: Optimizer) -> None:
    """Notes that an SGDPlus has walked a batch, or will, in the trace that is made."""
    _engaged.add(optimizer)


def is_engaged(optimizer: Optimizer) -> bool:
    """Whether it has ever walked a batch."""
    return optimizer in _engaged


def note_applied(optimizer: Optimizer, fitted: Iterable[Model]) -> None:
    """Notes that gradients were applied where `fit` would; loops by hand do not count.

    Args:
        optimizer: the SGDPlus.
        fitted: the models whose `fit` runs.
    """
    if keras_trainer.inside_strategy_run():
        _applied.add(optimizer)
        for model in fitted:
            _of_fits[model].add(optimizer)


def warn_of_bypass(model: Model) -> None:
    """Warns at the end of `fit`, once per optimizer whose loop was bypassed."""
    own = unwrap(getattr(model, "optimizer", None))
    found = list(_of_fits.pop(model, ()))
    if own in _applied and own not in found:
        found.append(own)
    for optimizer in found:
        if per_example(optimizer) is None or optimizer in _engaged:
            continue  # one update per batch is meant, or none is made
        name, place = optimizer.name, next(_places(model, optimizer), "optimizer")
        text = (
            f"fit() used the optimizer {name!r} for one update per batch: train_step "
            f"of the model {model.name!r} called apply_gradients or apply, so SGDPlus "
            "never saw single examples. In place of the tape and that call, write logs "
            f"= {place}.train_step(network, (x, y)) in train_step. There network is "
            "the keras.Model that this optimizer trains, compiled with its loss; "
            "examples/gan.py trains two networks so. If one update per batch is meant, "
            "say so with SGDPlus(..., examples_per_update=None)."
        )
        if optimizer is own:
            text = (
                f"fit() used the optimizer {name!r} for one update per batch: the "
                "model's own train_step called apply_gradients, so SGDPlus never saw "
                "single examples. Return self.optimizer.train_step(self, data), or "
                "super().train_step(data), from train_step. If one update per batch is "
                "meant, say so with SGDPlus(..., examples_per_update=None)."
            )
        once(optimizer, "bypass", text)


def _places(model: Model, optimizer: Optimizer) -> Iterator[str]:
    # How the model's code can name an optimizer that it holds: attributes first.
    held = {k: v for k, v in vars(model).items() if not k.startswith(_OF_TRACKING)}
    for name, value in held.items():
        if unwrap(value) is optimizer:
            yield f"self.{name}"
        is_other = isinstance(value, keras.Model) and value is not model
        if is_other and unwrap(getattr(value, "optimizer", None)) is optimizer:
            yield f"self.{name}.optimizer"
    for name, value in held.items():
        listed = enumerate(value) if isinstance(value, (list, tuple)) else ()
        items: Any = value.items() if isinstance(value, dict) else listed
        for key, item in items:
            if unwrap(item) is optimizer:
                yield f"self.{name}[{key!r}]"


# A schedule counts updates. Recipes count batches, and here an update is an example, so
# a schedule that was meant for a whole run may end in its first minutes.
_NOTHING = 0.01  # part of the first rate at which a decay without end counts as ended


class ScheduleLength(NamedTuple):
    """The length of a schedule.

    Attributes:
        updates: after how many it has ended, or its first period has.
        arguments: those that count updates, by name: an int, or a list of them.
        is_whole: whether `decay_steps` alone is that length.
    """

    updates: float
    arguments: dict[str, Any]
    is_whole: bool = False


def schedule_length(schedule: object) -> ScheduleLength | None:
    """The length of one of Keras's schedules; None if it has none, or is another's."""
    kinds = optimizers.schedules
    if isinstance(schedule, kinds.PiecewiseConstantDecay):
        every = [float(b) for b in schedule.boundaries]
        return ScheduleLength(every[-1], {"boundaries": every}) if every else None
    if isinstance(schedule, kinds.CosineDecayRestarts):
        first = schedule.first_decay_steps
        return ScheduleLength(first, {"first_decay_steps": first})
    steps: Any = getattr(schedule, "decay_steps", None)
    if isinstance(schedule, kinds.CosineDecay):
        if schedule.warmup_target is None or not schedule.warmup_steps:
            return ScheduleLength(steps, {"decay_steps": steps}, is_whole=True)
        warmup = schedule.warmup_steps
        arguments = {"decay_steps": steps, "warmup_steps": warmup}
        return ScheduleLength(steps + warmup, arguments)
    if isinstance(schedule, kinds.PolynomialDecay):
        return ScheduleLength(steps, {"decay_steps": steps}, is_whole=True)
    if isinstance(schedule, kinds.ExponentialDecay) and 0 < schedule.decay_rate < 1:
        length = steps * math.log(_NOTHING, float(schedule.decay_rate))
        return ScheduleLength(length, {"decay_steps": steps})
    if isinstance(schedule, kinds.InverseTimeDecay) and schedule.decay_rate > 0:
        length = steps * (1 / _NOTHING - 1) / float(schedule.decay_rate)
        return ScheduleLength(length, {"decay_steps": steps})
    return None


def report_schedule(optimizer: Optimizer, updates: int, epochs: int) -> str | None:
    """The warning for a schedule that ended within the first epoch, or None.

    Args:
        optimizer: the SGDPlus, which was new.
        updates: made in the first epoch, as a schedule counts them: raw.
        epochs: that `fit` was to make.
    """
    schedule = keras_optimizer.schedule(optimizer)
    found = schedule_length(schedule)
    if found is None or found.updates >= updates:
        return None
    given = ", ".join(f"{k}={_plain(v)}" for k, v in found.arguments.items())
    unit = "one per example"
    if optimizer.examples_per_update > 1:
        unit = f"one per {optimizer.examples_per_update} examples"
    every = updates * epochs
    made = f"An epoch of this fit makes {updates} updates, the whole fit {every}."
    advice = f"Give {' and '.join(found.arguments)} in updates."
    if found.is_whole:
        advice = f"For a decay over the whole fit use decay_steps={every}."
    return (
        "A learning-rate schedule should last longer than the first epoch. Received: "
        f"{type(schedule).__name__}({given}), which counts updates, {unit}. It ended "
        f"after {math.ceil(found.updates)} of the {updates} updates of the first "
        f"epoch. {made} {advice}"
    )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_plain(each) for each in value)}]"
    return f"{value:.12g}"


SECONDS = 10.0  # a first batch may take before it is explained
_FIRST_CALL = "first call"


@contextlib.contextmanager
def watched_first_call(model: Model, optimizer: Optimizer) -> Iterator[None]:
    """While it is open, a wait of more than `SECONDS` is explained, once per model.

    Keras's progress bar stands still until the first batch is done. Nothing is watched
    after that, so later batches cost nothing.
    """
    is_compiled = optimizer.jit_compile is not False and not model.run_eagerly
    if not is_compiled or _FIRST_CALL in _topics[model]:
        yield
        return
    # The caller waits inside TensorFlow, so another thread has to speak.
    timer = threading.Timer(SECONDS, _explain, [model])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explain(model: Model) -> None:
    work = "TensorFlow traces the loop over examples, and XLA compiles it"
    advice = (
        "SGDPlus(..., jit_compile=False) does not compile, and trains many times "
        "slower."
    )
    if xla.goes_without(model):  # which was said
        work, advice = "TensorFlow traces the loop over examples, without XLA", ""
    # Where warnings are errors, nobody could catch this one.
    with contextlib.suppress(UserWarning):
        text = (
            f"The first batch of model {model.name!r} has taken {SECONDS:g} seconds "
            f"so far: {work}. The progress bar stands still meanwhile. That is done "
            "once per shape of an example, and later batches are fast. To shorten it, "
            "leave out unroll=True of RNN layers, pad sequences to one length, or use "
            f"fewer layers. {advice}".rstrip()
        )
        once(model, _FIRST_CALL, text)
