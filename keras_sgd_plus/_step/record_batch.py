"""Records of one batch: can they be made, and where they go."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import ExampleUpdate
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor
from keras_sgd_plus._records import recorders
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
    if strategy.num_replicas() > 1:
        raise NotImplementedError(
            "ExampleLog must be used with one replica. Received: "
            f"{strategy.num_replicas()} replicas, each of which walks a part of the "
            "batch. Train without a tf.distribute strategy where you want records."
        )
    if model.jit_compile and not tf.executing_eagerly():
        raise NotImplementedError(
            "ExampleLog needs a train step that Keras does not compile as a whole. "
            "Received: a model with jit_compile=True. Use compile(..., "
            "jit_compile=False); SGDPlus compiles its loop all the same."
        )
    if recorder.wanted.id is not None:
        _ids(batch, recorder.wanted.id)


def close(
    update: ExampleUpdate, walked: WalkedBatch, iterations: Tensor, num_examples: Tensor
) -> None:
    """Hands the records of a batch to the recorder, in the graph; if there is one.

    Args:
        update: that has walked the batch.
        walked: its results.
        iterations: () int64, the raw counter before the batch.
        num_examples: an int or () int32.
    """
    recorder = update.recorder
    if recorder is None:
        return
    key = recorder.wanted.id
    recorder.close(
        walked.records,
        walked.order,
        num_examples,
        iterations,
        update.group_size,
        None if key is None else _ids(update.batch, key),
        update.model.steps_per_execution > 1,
    )


def _ids(batch: Structure, key: str) -> Any:
    # (num_examples,) or (num_examples, 1) integers, of the inputs.
    x = batch[0]
    found: Any = x.get(key) if isinstance(x, dict) else None
    if found is None:
        kind = f"a dict with {sorted(x)}" if isinstance(x, dict) else type(x).__name__
        raise ValueError(
            f"ExampleLog(id={key!r}) must find its rows among the inputs. Received: x, "
            f"{kind}. Give fit a dict with that key: the row of each example, an int. "
            "The model may ignore it: keras.Input((), name=..., dtype='int64')."
        )
    if not found.dtype.is_integer or found.shape[1:].num_elements() != 1:
        raise TypeError(
            f"x[{key!r}] must be the row of each example, integers of shape "
            f"(num_examples,). Received: {found.dtype.name} of shape "
            f"{tuple(found.shape)}. Use np.arange(num_examples), and shuffle it with "
            "the examples."
        )
    return found
