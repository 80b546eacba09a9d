"""A run of `fit` for test_exact_resume.py: the same command each time, killed or not.

As a script it imports TensorFlow once and forks a process per attempt. The parent kills
each with SIGKILL, at a moment that it draws from the seed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import AverageWeights, ExactResume, SeededArrays, SGDPlus
from tests.support.twins import dense_data, dense_model

EPOCHS, NUM_EXAMPLES, BATCH_SIZE = 4, 110, 10
NUM_BATCHES = NUM_EXAMPLES // BATCH_SIZE
KINDS = ("arrays", "seeded_arrays", "dataset", "repeated_dataset", "generator")
AVERAGED = ("averages_before", "averages_behind")  # with AverageWeights


def make_model(**settings: Any) -> keras.Model:
    """A model with all kinds of state: momentum, EMA, schedule, seeds, statistics."""
    keras.utils.set_random_seed(11)
    layers = [
        keras.layers.Dense(8, "tanh"),
        keras.layers.Dropout(0.3),
        keras.layers.Reshape((4, 2)),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rate = keras.optimizers.schedules.InverseTimeDecay(0.02, 100, 0.5)
    optimizer = SGDPlus(rate, momentum=0.9, **{"use_ema": True, **settings})
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def make_data(kind: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of `fit`."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(NUM_EXAMPLES, 5)).astype("float32")
    y = np.tanh(x[:, :2] - x[:, 2:4])
    if kind == "arrays":
        return (x, y), {"batch_size": BATCH_SIZE}
    if kind == "seeded_arrays" or kind in AVERAGED:
        return (SeededArrays(x, y, batch_size=BATCH_SIZE, seed=7),), {}
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    if kind == "dataset":
        shuffled = dataset.shuffle(50, seed=3, reshuffle_each_iteration=False)
        return (shuffled.batch(BATCH_SIZE),), {}
    if kind == "repeated_dataset":
        shuffled = dataset.shuffle(50, seed=3).repeat().batch(BATCH_SIZE)
        return (shuffled,), {"steps_per_epoch": NUM_BATCHES}

    def batches() -> Any:
        for i in range(EPOCHS * NUM_BATCHES):
            rows = np.random.default_rng(i).permutation(NUM_EXAMPLES)[:BATCH_SIZE]
            yield x[rows], y[rows]

    return (batches(),), {"steps_per_epoch": NUM_BATCHES}


def state(model: keras.Model) -> list[np.ndarray]:
    """Weights, statistics, seeds, and all that the optimizer keeps."""
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def train(
    kind: str, directory: Path | None, callbacks: Any = (), **settings: Any
) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    """Runs the command of each attempt; returns the final state and the history."""
    if kind in AVERAGED:  # use_ema is another average
        settings = {**settings, "use_ema": False}
    model = make_model(**settings)
    data, arguments = make_data(kind)
    every = list(callbacks)
    if directory is not None:
        every.append(ExactResume(directory, save_freq=3, max_to_keep=2))
    if kind in AVERAGED:
        place = 0 if kind == "averages_before" else len(every)
        every.insert(place, AverageWeights())
    history = model.fit(
        *data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=every, **arguments
    )
    return state(model), history.history


def small_model(optimizer: Any = None, **compile: Any) -> Any:
    """A small dense model, the same at each call. Without an optimizer: no XLA."""
    keras.utils.set_random_seed(3)
    model = dense_model()
    optimizer = optimizer or SGDPlus(0.02, momentum=0.9, jit_compile=False)
    model.compile(optimizer, "mse", **compile)
    return model


def fit_small(
    model: Any, directory: Path | None, *callbacks: Any, **kwargs: Any
) -> Any:
    """Two epochs of 6 batches; with a directory, saved there after every second."""
    x, y = dense_data()
    every = [*callbacks, *([ExactResume(directory, 2)] if directory else [])]
    arguments = {"batch_size": 5, "epochs": 2, "shuffle": False, "verbose": 0}
    arguments = {"x": x, "y": y, **arguments, **kwargs}
    return model.fit(callbacks=every, **arguments)


class Tell(keras.callbacks.Callback):
    """Tells the parent of each batch and of each save, slowly."""

    def __init__(self, tell: Callable[[bytes], Any]) -> None:
        super().__init__()
        self.tell = tell
        save = tf.train.CheckpointManager.save

        def told(manager: Any, *args: Any, **kwargs: Any) -> Any:
            tell(b"s")
            return save(manager, *args, **kwargs)

        tf.train.CheckpointManager.save = told

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.tell(b"b")
        time.sleep(0.005)


def attempt(kind: str, directory: Path, kill: tuple[bytes, int, float] | None) -> bool:
    """Runs the command in a process of its own; whether it came to its end.

    Args:
        kill: after the n-th message of this kind, and so many seconds. None: never.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiver)
        final, _ = train(kind, directory, [Tell(lambda m: os.write(sender, m))])
        np.savez(directory / "final.npz", *final)
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb", buffering=0) as messages:
        if kill is not None:
            what, count, delay = kill
            while count and (message := messages.read(1)):
                count -= message == what
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        while messages.read(64):
            pass
    _, status = os.waitpid(child, 0)
    return status == 0


def main(kind: str, directory: Path, num_kills: int, seed: int) -> None:
    """Kills attempts until enough have died, lets one end, and prints what happened."""
    rng = np.random.default_rng(seed)
    killed = {b"b": 0, b"s": 0}
    numbers = []
    while sum(killed.values()) < num_kills:
        what = b"bs"[(i := int(rng.integers(2))) : i + 1]
        longest = 12 if what == b"b" else 4
        count, delay = int(rng.integers(1, longest)), float(rng.uniform(0, 0.03))
        if attempt(kind, directory, (what, count, delay)):
            (directory / "final.npz").unlink()
            for path in directory.glob("c*"):  # begin again
                # A save that was killed leaves a folder.
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            continue
        killed[what] += 1
        latest = tf.train.latest_checkpoint(str(directory)) or "-0"
        numbers.append(latest.rsplit("-", 1)[1])
    assert attempt(kind, directory, None)
    print("killed", killed[b"b"], "in training,", killed[b"s"], "in saves; last saves")
    print(*numbers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
