"""The arms on Keras: SGDPlus, `keras.optimizers.SGD` at several settings, a floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.arms import keras_networks, names
from benchmarks.arms.arm import Arm, Unsupported
from benchmarks.arms.workloads import Workload
from keras_sgd_plus import SGDPlus

_SGD = keras.optimizers.SGD


def compiled(workload: Workload, optimizer: Any, **settings: Any) -> Any:
    """The compiled model of a workload."""
    model = keras_networks.build(workload)
    model.compile(optimizer, keras_networks.loss(workload), **settings)
    return model


def start_from(model: Any, weights: list[np.ndarray]) -> None:
    """Sets the trainable weights, and moving statistics where `weights` has them."""
    for variable, value in zip(_variables(model), weights, strict=True):
        variable.assign(value)


def weights_of(model: Any) -> list[np.ndarray]:
    """Trainable weights, then the moving statistics of each BatchNormalization."""
    return [np.array(variable.numpy()) for variable in _variables(model)]


def _variables(model: Any) -> list[Any]:
    moving = [v for v in model.non_trainable_variables if "moving" in v.path]
    return [*model.trainable_variables, *moving]


@dataclass
class _Trained:
    """A model, and a function that passes over the examples once."""

    model: Any
    run: Callable[..., Any]

    def train(self) -> None:
        self.run()

    def weights(self) -> list[np.ndarray]:
        return weights_of(self.model)


class _Clock(keras.callbacks.Callback):
    """When each epoch began, and when the last one ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, logs: Any = None) -> None:
        self.times.append(time.perf_counter())


@dataclass
class _Fitted(_Trained):
    """A model and its call of `fit`, which takes `epochs` and `callbacks`."""

    def timed(self) -> tuple[float, float]:
        # A call has costs of its own, before the first epoch and in it: a pass is the
        # second epoch.
        clock = _Clock()
        start = time.perf_counter()
        self.run(epochs=2, callbacks=[clock])
        total = time.perf_counter() - start
        first, second, end = clock.times
        return end - second, total - (end - first)


def fit(
    make_optimizer: Callable[..., Any],
    batch_size: int,
    one_batch: bool = False,
    shape: Callable[[Any], Any] = lambda model: model,
    **settings: Any,
) -> Callable[..., Arm]:
    """An arm that calls `fit`; a pass is an epoch inside of it, the second of two.

    Args:
        make_optimizer: takes `learning_rate` and `momentum`.
        batch_size: that of `fit`; a pass over fewer examples is one batch.
        one_batch: hand over all examples as a dataset of one element instead.
        shape: changes the compiled model.
        settings: further arguments of `compile`.
    """

    def make(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
        optimizer = make_optimizer(
            learning_rate=workload.learning_rate, momentum=workload.momentum
        )
        model = shape(compiled(workload, optimizer, **settings))
        start_from(model, weights)
        if one_batch:
            # One element, taken as it is: Keras gathers no rows for it.
            data = tf.data.Dataset.from_tensors((x, y))
            return _Fitted(model, partial(model.fit, data, verbose=0))
        # Not shuffled: arms of one algorithm must see the same order.
        settings_of_fit = {"batch_size": min(batch_size, len(x)), "shuffle": False}
        return _Fitted(model, partial(model.fit, x, y, verbose=0, **settings_of_fit))

    return make


def _loop(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    model, run = _by_hand(workload, x, y)
    start_from(model, weights)
    return _Trained(model, run)


def _by_hand(
    workload: Workload, x: Any, y: Any, **settings: Any
) -> tuple[Any, Callable[[], float]]:
    # `train_step` by hand on tensors that are there already: no data path, no `fit`.
    own = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}
    optimizer = _given(**{**own, **settings})
    model = compiled(workload, optimizer)
    batch = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    # The loss as a float: that waits for the end.
    return model, lambda: float(optimizer.train_step(model, batch)["loss"])


def timed_loop(
    workload: Workload, count: int, **settings: Any
) -> tuple[Callable[[], float], float]:
    """A pass of the loop alone, microseconds per example; and the first pass's loss.

    Args:
        workload: what is trained.
        count: the number of examples.
        settings: arguments of `SGDPlus`; the workload has its own rate and momentum.
    """
    _, train = _by_hand(workload, *workload.data(count), **settings)

    def run() -> float:
        start = time.perf_counter()
        train()
        return (time.perf_counter() - start) / count * 1e6

    return run, train()  # the first pass compiles


def _given(learning_rate: float, momentum: float, **settings: Any) -> Any:
    return SGDPlus(learning_rate, momentum, order="given", **settings)


def _groups(size: int) -> Callable[..., Any]:
    return lambda **settings: _given(examples_per_update=size, **settings)


class _Idle(keras.Model):
    """Trains nothing, so that its time is the cost of `fit` itself."""

    def train_step(self, data: Any) -> dict[str, Any]:
        # It reads x, which therefore has to be delivered.
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"loss": tf.reshape(tf.cast(x, tf.float32), [-1])[0]}


def idle(model: Any) -> Any:
    """The model with a train step that trains nothing."""
    trainer = _Idle(model.inputs, model.outputs)
    trainer.compile(keras.optimizers.SGD(), "mse")
    return trainer


def _stepping(batch_size: int, steps: int) -> Callable[..., Arm]:
    def make(workload: Workload, *rest: Any) -> Arm:
        if workload.num_examples < batch_size * steps:
            raise Unsupported("fewer examples than one execution has steps")
        return fit(_SGD, batch_size, steps_per_execution=steps)(workload, *rest)

    return make


# Batch sizes at which `fit` is measured beside a `fit` that trains nothing.
SIZES = (64, 256, 1024, 4096, 8192, 16_384, 65_536)

ARMS: dict[str, Callable[..., Arm]] = {
    names.FIT: fit(_given, 1024),
    names.LOOP: _loop,
    **{f"{names.FIT}, batch {size:,}": fit(_given, size) for size in (32, *SIZES)},
    names.ONE_BATCH: fit(SGDPlus, 0, one_batch=True),
    f"{names.FIT}, 8 examples per update": fit(_groups(8), 4096),
    f"{names.FIT}, 32 examples per update": fit(_groups(32), 4096),
    names.KERAS_1: fit(_SGD, 1),
    f"{names.KERAS_1}, 64 steps per execution": _stepping(1, 64),
    f"{names.KERAS_1}, jit_compile": fit(_SGD, 1, jit_compile=True),
    "keras SGD, batch 8": fit(_SGD, 8),
    names.KERAS_32: fit(_SGD, 32),
    f"{names.KERAS_32}, 32 steps per execution": _stepping(32, 32),
    f"{names.KERAS_32}, jit_compile": fit(_SGD, 32, jit_compile=True),
    f"{names.IDLE}, one batch": fit(_SGD, 0, one_batch=True, shape=idle),
    **{f"{names.IDLE}, batch {size:,}": fit(_SGD, size, shape=idle) for size in SIZES},
}
