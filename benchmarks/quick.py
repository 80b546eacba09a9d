"""The MLP 784-128-10 through `fit`: SGDPlus against Keras at `batch_size=1`.

Both arms run alternately in one process, from the same weights, in given order. Keras
gets fewer examples per repeat, since it needs a millisecond for each; the quality of
both is compared on the same examples before anything is timed.
"""

from __future__ import annotations

import time
from typing import Any

REPEATS = 5
NUM_EXAMPLES, NUM_SLOW = 8192, 1024
TARGET = 50


def _model(optimizer: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def _data() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.random((NUM_EXAMPLES, 784), dtype="float32")
    return x, (x @ rng.normal(size=(784, 10))).argmax(1)


def _seconds(model: Any, x: Any, y: Any, batch_size: int) -> float:
    start = time.perf_counter()
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; the exit code is 1 if the target or the equality is missed."""
    import statistics

    import keras

    from keras_sgd_plus import SGDPlus

    del arguments
    x, y = _data()
    failed = 0
    print("MLP 784-128-10, fit() in given order, microseconds per example:\n")
    print("| momentum | SGDPlus, batch 1,024 | Keras SGD, batch 1 | ratio | "
          "final loss | equal |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- |")
    for momentum in (0.0, 0.9):
        settings = {"learning_rate": 0.001, "momentum": momentum}
        ours = _model(SGDPlus(**settings, order="given"))
        theirs = _model(keras.optimizers.SGD(**settings))
        few = x[:NUM_SLOW], y[:NUM_SLOW]
        losses = []  # also compiles both
        for model, batch_size in ((ours, NUM_SLOW), (theirs, 1)):
            fit = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
            losses.append(model.fit(*few, **fit).history["loss"][0])
        equal = abs(losses[0] - losses[1]) < 1e-4 * losses[1]
        fast, slow = [], []
        for _ in range(REPEATS):
            fast.append(_seconds(ours, x, y, NUM_SLOW) / NUM_EXAMPLES)
            slow.append(_seconds(theirs, *few, 1) / NUM_SLOW)
        ratio = statistics.median(slow) / statistics.median(fast)
        failed += not equal or ratio < TARGET
        cells = [f"{momentum:8}", f"{_cell(fast):20}", f"{_cell(slow):18}"]
        cells += [f"{ratio:5.0f}", f"{losses[0]:10.4f}", "yes" if equal else "WRONG"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nMedian (fastest to slowest) of {REPEATS}; target: {TARGET} or more.")
    return int(failed > 0)


def _cell(seconds: list[float]) -> str:
    import statistics

    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle * 1e6:.0f} ({low * 1e6:.0f} to {high * 1e6:.0f})"
