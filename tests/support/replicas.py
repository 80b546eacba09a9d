"""Simulates local SGD: replicas walk one after the other, then NumPy averages."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.oracle import Arrays, Oracle

Shard = tuple[np.ndarray, ...]  # x, y and maybe sample_weight


@functools.cache  # TensorFlow does not close the threads of one that is dropped
def mirrored(num_replicas: int) -> tf.distribute.Strategy:
    """A strategy over logical CPUs. Only that of 2 uses TensorFlow's collectives.

    In one process TensorFlow mixes up the collectives of two strategies.
    """
    devices = [f"CPU:{i}" for i in range(num_replicas)]
    plain = None if num_replicas == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=plain)


def shards(
    strategy: tf.distribute.Strategy, data: Shard, batch_size: int
) -> Iterator[list[Shard]]:
    """The part that each replica gets of each batch, as TensorFlow cuts it."""
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    for batch in strategy.experimental_distribute_dataset(dataset):
        parts = [strategy.experimental_local_results(part) for part in batch]
        yield [
            tuple(leaf.numpy() for leaf in shard) for shard in zip(*parts, strict=True)
        ]


def mean(arrays: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """The average by examples."""
    weights = np.array(sizes, "float64") / sum(sizes)
    wide = [np.asarray(a).astype("float64") for a in arrays]
    return np.sum([w * a for w, a in zip(weights, wide, strict=True)], axis=0)


def visit(oracle: Oracle, batches: Iterator[list[Shard]]) -> None:
    """Lets NumPy's oracle play the replicas and average them."""
    for batch in batches:
        start = {k: list(getattr(oracle, k)) for k in _COLUMNS}
        iterations, found, sizes = oracle.iterations, [], []
        for x, y in batch:
            for name, arrays in start.items():
                setattr(oracle, name, [a.copy() for a in arrays])
            oracle.iterations = iterations
            oracle.visit(x, y, range(len(x)))
            found.append({k: list(getattr(oracle, k)) for k in _COLUMNS})
            sizes.append(len(x))
        for name in _COLUMNS:
            columns: list[Arrays] = [each[name] for each in found]
            means = [mean(list(c), sizes) for c in zip(*columns, strict=True)]
            setattr(oracle, name, means)
        oracle.iterations = iterations + sum(sizes)


_COLUMNS = ("weights", "velocities", "averages")


def state(model: Any) -> list[Any]:
    """The variables that replicas share."""
    return [*model.variables, *model.optimizer.variables]


def folded(seed: int, replica: int, bits: int) -> int:
    """The seed of one replica, as docs/devices.md says it."""
    if replica == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {replica}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


class Simulation:
    """One model on one device that plays the replicas in turn.

    Args:
        make: gives the model, compiled with an SGDPlus.
        smallest: parts of the paths of variables that get the smallest value.
    """

    def __init__(self, make: Callable[[], Any], smallest: tuple[str, ...] = ()) -> None:
        self.model, self.smallest = make(), smallest

    def train(self, batches: Iterator[list[Shard]]) -> dict[str, float]:
        """One call per batch and replica, and the averages after each batch.

        Returns:
            The logs, over all examples.
        """
        seen: list[tuple[int, dict[str, float]]] = []
        for batch in batches:
            self._train_batch(batch, seen)
        total = sum(size for size, _ in seen)
        return {
            name: sum(size * logs[name] for size, logs in seen) / total
            for name in seen[0][1]
        }

    def _train_batch(self, batch: list[Shard], seen: list[Any]) -> None:
        model = self.model
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        seed = inner.seed
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = state(model)
        before = [v.numpy() for v in variables]
        after, sizes = [], []
        for replica, shard in enumerate(batch):
            start = [
                _start(v, b, replica) for v, b in zip(variables, before, strict=True)
            ]
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)
            inner.seed = folded(seed, replica, 63)
            if len(shard[0]):
                model.reset_metrics()  # Keras 3.13 does not in train_on_batch
                logs = model.train_on_batch(*shard, return_dict=True)
                seen.append((len(shard[0]), logs))
                # Add up what each replica added to seeds and counters.
                ended = [v.numpy() for v in variables]
                after.append(
                    [
                        b + (e - s) if v.dtype in ("int64", "int32") else e
                        for v, b, s, e in zip(
                            variables, before, start, ended, strict=True
                        )
                    ]
                )
                sizes.append(len(shard[0]))
        inner.seed = seed
        for i, variable in enumerate(variables):
            variable.assign(
                self._met(variable, before[i], [a[i] for a in after], sizes)
            )

    def _met(self, variable: Any, before: Any, after: list[Any], sizes: Any) -> Any:
        if any(part in variable.path for part in self.smallest):
            return np.min(after, axis=0)
        if variable.dtype in ("int64", "int32"):
            return before + sum(a - before for a in after)
        return mean(after, sizes).astype(before.dtype)


def _start(variable: Any, value: np.ndarray, replica: int) -> np.ndarray:
    if "seed_generator_state" not in variable.path:
        return value
    return np.array([value[0] ^ folded(0, replica, 31), value[1]], value.dtype)


def copies(strategy: tf.distribute.Strategy, variable: Any) -> list[np.ndarray]:
    """The value that each replica has."""
    found = strategy.experimental_local_results(variable.value)
    return [np.asarray(each.numpy()) for each in found]


def keras_twin(make: Callable[[], Any]) -> Any:
    """A fresh model, with the same initial weights at each call."""
    keras.utils.set_random_seed(1)
    return make()


def together(model: Any, strategy: tf.distribute.Strategy) -> None:
    """Every replica has the same state."""
    for variable in state(model):
        first, *others = copies(strategy, variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def dropout_model() -> Any:
    """A small network that drops half of its hidden units."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )


def compiled(make: Any, loss: Any = "mse", scaled: bool = False, **plus: Any) -> Any:
    def make_compiled() -> Any:
        model = make()
        optimizer: Any = SGDPlus(**{"learning_rate": 0.02, "momentum": 0.9, **plus})
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=2.0**12, dynamic_growth_steps=5
            )
        model.compile(optimizer, loss, metrics=["mae"])
        return model

    return make_compiled
