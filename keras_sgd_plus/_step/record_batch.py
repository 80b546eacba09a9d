"""Records of one batch: can they be made, and where they go."""

from __future__ import annotations

import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import ExampleUpdate
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor
from keras_sgd_plus._records import Part, Step, recorders
from keras_sgd_plus._step import ids
from keras_sgd_plus._step.walk_batch import WalkedBatch


def check(model: Model, optimizer: Optimizer, batch: Structure) -> None:
    """Raises where the records that a log asks for cannot be made.

    Args:
        model: the model in training.
        optimizer: the SGDPlus.
        batch: `(x, y, sample_weight)`.
    """
    recorder = recorders.of(optimizer)
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
        ids.of(batch[0], recorder.wanted.id)


def close(
    update: ExampleUpdate,
    walked: WalkedBatch,
    place: Tensor,
    iterations: Tensor,
    num_examples: Tensor,
    sizes: Tensor = None,
) -> None:
    """Hands the records of a batch to the recorder, in the graph; if there is one.

    Args:
        update: that has walked the batch.
        walked: its results.
        place: (3,) int64, the number of `fit`, the epoch and that of the batch; None
            without a recorder.
        iterations: () int64, the raw counter before the batch.
        num_examples: an int or () int32.
        sizes: (replicas,) int64, the examples of each; None with one replica.
    """
    recorder = update.recorder
    if recorder is None:
        return
    model, key = update.model, recorder.wanted.id
    batches = model.steps_per_execution
    replica, part = 0, None
    if sizes is not None:
        replica = strategy.local_replica()
        before = sizes[: strategy.replica()]
        part = Part(tf.reduce_sum(before), tf.reduce_sum(sizes))
    in_order, size = walked.order is None, update.group_size
    step = Step(replica, in_order, size, batches, _is_compiled(model))
    rows = None if key is None else ids.of(update.batch[0], key)
    found = (walked.records, walked.order, num_examples, place, iterations, rows)
    recorder.close(step, *found, part)


def _is_compiled(model: Model) -> bool:
    # Whether XLA takes the whole step.
    return bool(model.jit_compile) and not tf.executing_eagerly()
