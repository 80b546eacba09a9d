"""Wrote the files of this folder, with version 0.2.0 installed.

`python write.py FOLDER`. A model is trained halfway and saved; `continued.npz` has its
weights and optimizer state after one more epoch. `run` is the folder of an ExactResume
that was stopped in the middle of its second epoch, and `resumed.npz` what the run ends
with; `log` has the files of an ExampleLog.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import (
    AverageWeights,
    ExactResume,
    ExampleLog,
    SeededArrays,
    SGDPlus,
)


def data() -> tuple[Any, Any]:
    """24 examples of 4 numbers, and their sums."""
    x = np.random.default_rng(7).normal(size=(24, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def network(dropout: float = 0.0) -> Any:
    """A model with an optimizer that has most kinds of state.

    Keras saves no state of dropout with a model; ExactResume does.
    """
    keras.utils.set_random_seed(7)
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(3, "tanh"),
        keras.layers.Dropout(dropout, seed=5),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers, name="old")
    optimizer = SGDPlus(
        0.01, momentum=0.9, weight_decay=1e-3, seed=11, nonfinite="skip"
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


class Stop(keras.callbacks.Callback):
    """Ends `fit` by an error, in the middle of the second epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises after 5 batches."""
        if int(self.model.optimizer.iterations) == 40:
            raise KeyboardInterrupt


def run(folder: Path, *callbacks: Any) -> Any:
    """Trains a model for three epochs, or as far as the callbacks let it."""
    model = network(0.2)
    arrays = SeededArrays(*data(), batch_size=8, seed=3)
    resume = ExactResume(folder, 1)
    averages, log = AverageWeights(), ExampleLog()
    model.fit(
        arrays,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[averages, log, resume, *callbacks],
    )
    return model, log


def main(folder: Path) -> None:
    """Writes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    (x, y), model = data(), network()
    bad = x.copy()
    bad[5] = np.nan
    model.fit(bad, y, batch_size=8, shuffle=False, verbose=0)
    skipped = model.optimizer.skipped_examples()
    model.save(folder / "model.keras")
    model.save_weights(folder / "old.weights.h5")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    state = [v.numpy() for v in model.optimizer.variables]
    np.savez(folder / "continued.npz", *model.get_weights(), *state)
    objects = {
        "optimizer": SGDPlus(0.02, momentum=0.5, seed=3),
        "data": SeededArrays(x, y, batch_size=8, seed=3),
        "skipped": skipped,
    }
    with open(folder / "objects.pickle", "wb") as file:
        pickle.dump(objects, file)
    try:
        run(folder / "run", Stop())
    except KeyboardInterrupt:
        pass
    ended, log = run(folder / "whole")
    np.savez(
        folder / "resumed.npz", *ended.get_weights(), loss=log.loss, visited=log.visited
    )
    written = ExampleLog(True, True, path=folder / "log")
    network().fit(
        x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[written]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
