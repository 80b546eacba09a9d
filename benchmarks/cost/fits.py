"""What the studies of callbacks share: epochs of `fit` in batches of 1,024.

CPU time is measured, on one thread: an epoch of `fit` waits for its data.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from benchmarks.arms.workloads import Workload

BATCH_SIZE = 1024


def batches(workload: Workload, count: int) -> Any:
    """A `tf.data.Dataset` of `count` examples, which does not shuffle."""
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices(workload.data(count))
    return slices.batch(BATCH_SIZE).cache()


def models(workload: Workload, arms: Iterable[str]) -> dict[str, Any]:
    """A model with an SGDPlus for each arm, all from the same weights."""
    from benchmarks.arms import keras_arms  # it loads TensorFlow
    from keras_sgd_plus import SGDPlus

    made: dict[str, Any] = {}
    for arm in arms:
        rule = SGDPlus(workload.learning_rate, workload.momentum, order="given")
        made[arm] = keras_arms.compiled(workload, rule)
        first = next(iter(made.values()))
        keras_arms.start_from(made[arm], keras_arms.weights_of(first))
    return made


def clock() -> Any:
    """A callback with the CPU time of each epoch."""
    import keras

    class Clock(keras.callbacks.Callback):
        """Seconds of CPU time of each epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_begin(self, logs: Any = None) -> None:
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            now = time.process_time()
            self.times.append(now - self.start)
            self.start = now

    return Clock()
