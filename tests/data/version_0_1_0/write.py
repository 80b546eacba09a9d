"""Wrote the files of this folder, with version 0.1.0 installed.

`python write.py FOLDER`. A model is trained halfway and saved; `continued.npz` has its
weights and optimizer state after one more epoch.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import SGDPlus


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(24, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)],
        name="old",
    )
    optimizer: Any = SGDPlus(0.01, momentum=0.9, seed=11, nonfinite="skip")
    model.compile(optimizer, "mse")
    bad = x.copy()
    bad[5] = np.nan
    model.fit(bad, y, batch_size=8, shuffle=False, verbose=0)
    model.save(folder / "model.keras")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    state = [v.numpy() for v in optimizer.variables]
    np.savez(folder / "continued.npz", *model.get_weights(), *state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
