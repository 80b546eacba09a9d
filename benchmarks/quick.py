"""The MLP 784-128-10 through `fit`: SGDPlus against Keras at batch sizes 1 and 32.

The arms run alternately in one process, from the same weights, in given order. Keras at
batch size 1 gets fewer examples per repeat, since it needs a millisecond for each. The
quality of every arm stands beside its time: the loss on the first 1,024 examples after
one pass over them, which must agree where the algorithm is the same.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

REPEATS = 9
NUM_EXAMPLES, NUM_SLOW = 32_768, 1024
TARGET = 50  # times faster per example, momentum 0


@dataclass
class Arm:
    """One way to train, and what was measured of it."""

    name: str
    make_optimizer: Callable[[], Any]
    batch_size: int
    num_examples: int
    seconds: list[float] = field(default_factory=list)  # per example
    loss: float = 0.0


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


def measure(momentum: float) -> list[Arm]:
    """Trains every arm; the first pass compiles and gives the quality."""
    import keras

    from keras_sgd_plus import SGDPlus

    settings = {"learning_rate": 0.001, "momentum": momentum}
    x, y = _data()
    few = x[:NUM_SLOW], y[:NUM_SLOW]

    def sgd() -> Any:
        return keras.optimizers.SGD(**settings)

    arms = [
        Arm(
            "SGDPlus, batch 1,024",
            lambda: SGDPlus(**settings, order="given"),
            NUM_SLOW,
            NUM_EXAMPLES,
        ),
        Arm("keras SGD, batch 1", sgd, 1, NUM_SLOW),
        Arm("keras SGD, batch 32", sgd, 32, NUM_EXAMPLES),
    ]
    models = [_model(arm.make_optimizer()) for arm in arms]
    for arm, model in zip(arms, models, strict=True):
        _seconds(model, *few, arm.batch_size)
        arm.loss = model.evaluate(*few, batch_size=NUM_SLOW, verbose=0)
        if arm.num_examples > NUM_SLOW:
            _seconds(model, x, y, arm.batch_size)
    for _ in range(REPEATS):
        for arm, model in zip(arms, models, strict=True):
            rows = slice(arm.num_examples)
            taken = _seconds(model, x[rows], y[rows], arm.batch_size)
            arm.seconds.append(taken / arm.num_examples)
    return arms


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; the exit code is 1 if the target or the equality is missed."""
    import keras
    import tensorflow as tf

    del arguments
    print("MLP 784-128-10, fit() in given order, microseconds per example.\n")
    print("| momentum | optimizer | median | range | updates per epoch | loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    ratios, equal = {}, True
    for momentum in (0.0, 0.9):
        arms = measure(momentum)
        for arm in arms:
            low, high = min(arm.seconds) * 1e6, max(arm.seconds) * 1e6
            updates = NUM_EXAMPLES if arm.batch_size != 32 else NUM_EXAMPLES // 32
            print(
                f"| {momentum} | {arm.name:20} | {_median(arm) * 1e6:6.1f} | "
                f"{low:.1f} to {high:.1f} | {updates:,} | {arm.loss:.4f} |",
                flush=True,
            )
        ours, theirs, _ = arms
        ratios[momentum] = _median(theirs) / _median(ours)
        equal = equal and abs(ours.loss - theirs.loss) < 1e-4 * theirs.loss
    print(
        f"\nSGDPlus is faster than keras SGD with batch 1 by {ratios[0.0]:.0f} times "
        f"(momentum 0; target {TARGET}) and {ratios[0.9]:.0f} times (momentum 0.9).\n"
        f"Losses of these two agree: {'yes' if equal else 'NO: the rows are wrong'}.\n"
        f"Medians of {REPEATS}, compilation apart. Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {_processor()}."
    )
    return int(not equal or ratios[0.0] < TARGET)


def _median(arm: Arm) -> float:
    return statistics.median(arm.seconds)


def _processor() -> str:
    import os

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = [line.split(": ")[1] for line in file if "model name" in line]
        name = models[0].strip() if models else name
    except OSError:
        pass
    return f"{os.cpu_count()} cores of {name}"
