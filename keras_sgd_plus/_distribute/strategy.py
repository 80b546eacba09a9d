"""Questions about the `tf.distribute` strategy in which the caller runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Model, Strategy, Variable


def check() -> None:
    """Raises NotImplementedError under a strategy that a walk cannot run under."""
    if not tf.distribute.has_strategy():
        return
    strategy = tf.distribute.get_strategy()
    known = (
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )
    if not isinstance(strategy, known):
        raise NotImplementedError(
            "SGDPlus steps per example under tf.distribute.MirroredStrategy, "
            "MultiWorkerMirroredStrategy and OneDeviceStrategy. Received: "
            f"{type(strategy).__name__}. Use one of these, or examples_per_update=None "
            "for one update per batch."
        )


def check_replica() -> None:
    """Raises RuntimeError if several replicas train and the caller is none of them."""
    if num_replicas() > 1 and tf.distribute.in_cross_replica_context():
        raise RuntimeError(
            "train_step must be called by each replica. Received: a call inside "
            "strategy.scope() alone. Use strategy.run(lambda part: "
            "optimizer.train_step(model, part), args=(batch,))."
        )


def is_open() -> bool:
    """Whether a strategy is open; variables under it cannot be written inside XLA."""
    return tf.distribute.has_strategy()


def num_replicas() -> int:
    """The replicas that train together where the caller runs; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def num_replicas_of(model: Model) -> int:
    """The replicas that a model trains on."""
    return model.distribute_strategy.num_replicas_in_sync


def num_local_replicas() -> int:
    """The number of replicas in this process."""
    return num_replicas_per_worker(tf.distribute.get_strategy())


def num_replicas_per_worker(strategy: Strategy) -> int:
    """The number of replicas in each process of a strategy."""
    extended: Any = strategy.extended
    return len(extended.worker_devices)


def has_workers(strategy: Strategy) -> bool:
    """Whether a strategy trains with other processes."""
    return private_tensorflow.has_workers(strategy)


def worker(strategy: Strategy) -> int:
    """The number of this process among those of a strategy, from 0."""
    if not has_workers(strategy):
        return 0
    resolver: Any = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    is_worker = has_chief and resolver.task_type != "chief"
    return resolver.task_id + is_worker


def is_chief(strategy: Strategy) -> bool:
    """Whether this process is the one that writes files; true without workers."""
    return worker(strategy) == 0


def has_copies(variable: Variable) -> bool:
    """Whether each replica of this process has a copy of a `tf.Variable`."""
    strategy = tf.distribute.get_strategy()
    copies = strategy.experimental_local_results(variable)
    return len(copies) == num_local_replicas()


def gathered(strategy: Strategy, value: int) -> list[int]:
    """The value that each worker has, in the order of their numbers.

    Args:
        strategy: all workers call this at the same place.
        value: of this one.
    """
    if not has_workers(strategy):
        return [value]
    per_replica = strategy.run(lambda: tf.constant([value], tf.int64))
    found = strategy.gather(per_replica, axis=0).numpy().tolist()
    return found[:: num_replicas_per_worker(strategy)]


def gathered_bytes(strategy: Strategy, value: bytes) -> list[bytes]:
    """As `gathered`, of bytes, of which each worker may have another number."""
    if not has_workers(strategy):
        return [value]
    sizes = gathered(strategy, len(value))
    row = np.zeros((1, -(-max(sizes) // 8)), np.int64)
    row.view(np.uint8)[0, : len(value)] = np.frombuffer(value, np.uint8)
    rows = strategy.gather(strategy.run(lambda: tf.constant(row)), axis=0).numpy()
    rows = rows[:: num_replicas_per_worker(strategy)]
    pairs = zip(rows, sizes, strict=True)
    return [row.tobytes()[:size] for row, size in pairs]


@contextlib.contextmanager
def lost_workers(strategy: Strategy) -> Iterator[None]:
    """Raises RuntimeError where TensorFlow says that a worker cannot be reached."""
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError)
    try:
        yield
    except lost as error:
        # TensorFlow has one class for many causes; its text alone names a lost worker.
        lines = [line for line in str(error).splitlines() if "aborted by" in line]
        if not lines or not has_workers(strategy):
            raise
        raise RuntimeError(
            "Every worker must take part in every batch. Received: a worker that is "
            f"gone ({lines[0].strip()}). Start all workers again, this one too; "
            "ExactResume takes the run up where it was saved."
        ) from error


def replica() -> int:
    """Which of all replicas the caller is, from 0."""
    context: Any = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group))


def local_replica() -> int:
    """Which of the replicas of this process the caller is, from 0."""
    return replica() % num_local_replicas()


def is_last_here() -> bool:
    """Whether the caller is the last replica of this process; true without any."""
    return num_replicas() == 1 or local_replica() == num_local_replicas() - 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Lets the code of a model believe that it runs on one device.

    Keras divides losses by the number of replicas, and synchronized statistics would
    talk to the others in the middle of a walk.
    """
    if num_replicas() == 1:
        yield
        return
    with private_tensorflow.without_strategy():
        yield
