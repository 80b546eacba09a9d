"""The cost of `AverageWeights`: epochs of `fit` in batches of 1,024.

`python -m benchmarks averages [workload ...]`. The models take turns, on one thread.
CPU time is measured: an epoch of `fit` waits for its data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.arms.workloads import WORKLOADS, Workload
from benchmarks.cost import loops
from benchmarks.cost.options import Options

BATCH_SIZE = 1024
REPEATS, EPOCHS = 9, 5  # fits of each model, epochs of each; the first does not count
_EXAMPLES = {  # in an epoch
    "softmax-784-10": 32_768,
    "mlp-784-128-10": 16_384,
    "mlp-784-128-10-m0.9": 16_384,
}
_TARGET = 1.05


def measure(arguments: list[str]) -> Iterator[Options]:
    """Yields each workload."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks averages")
    named = ", ".join(_EXAMPLES)
    parser.add_argument("workloads", nargs="*", help=f"of {named}; all if none")
    loops.use_one_thread()
    for name in parser.parse_args(arguments).workloads or _EXAMPLES:
        yield _measured(name, WORKLOADS[name], _EXAMPLES[name])


def _measured(name: str, workload: Workload, count: int) -> Options:
    import tensorflow as tf

    from benchmarks.arms import keras_arms  # it loads TensorFlow
    from keras_sgd_plus import AverageWeights, SGDPlus

    slices = tf.data.Dataset.from_tensor_slices(workload.data(count))
    data = slices.batch(BATCH_SIZE).cache()
    models: dict[str, Any] = {}
    callbacks = {"plain": [], "averaged": [AverageWeights()]}
    for arm in callbacks:
        rule = SGDPlus(workload.learning_rate, workload.momentum, order="given")
        models[arm] = keras_arms.compiled(workload, rule)
        weights = keras_arms.weights_of(models["plain"])
        keras_arms.start_from(models[arm], weights)
    times: dict[str, list[float]] = {arm: [] for arm in models}
    losses: dict[str, float] = {}
    for i in range(REPEATS):
        for arm, model in models.items():
            timer = clock()
            every = [*callbacks[arm], timer]
            fit = model.fit(data, epochs=EPOCHS, verbose=0, callbacks=every)
            losses.setdefault(arm, fit.history["loss"][-1])
            if i:  # the first fit compiles
                times[arm] += timer.times[1:]
    medians = {
        arm: statistics.median(found) / count * 1e6 for arm, found in times.items()
    }
    return Options(name, medians, _TARGET, losses["plain"] == losses["averaged"])


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
