"""Which networks of `keras.applications` gain from XLA: their loop with it and without.

`python -m benchmarks applications [--frozen] [network ...]`. Each has a new head of ten
classes and random weights; images are 64 x 64, for Xception 71 x 71. With `--frozen`
only the head is trained. The models of a network take turns, batch by batch, in one
process: SGDPlus with XLA, SGDPlus with `jit_compile=False`, and Keras's SGD, each on 32
images.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.shared import command
from benchmarks.shared.finding import Finding

NETWORKS = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"),
    *("EfficientNetV2B0", "NASNetMobile", "Xception", "ConvNeXtTiny"),
    *("DenseNet121", "ResNet50", "ResNet50V2", "VGG16"),
)
BATCH, REPEATS = 32, 5
_CLASSES, _SIDE = 10, 64
_LEAST_SIDES = {"Xception": 71}
_Pass = tuple[float, float]  # milliseconds per example: by the clock, of CPU time
_ARMS = ("compiled", "not compiled", "keras")


@dataclass(frozen=True)
class Application(Finding):
    """Milliseconds per example of one network, and seconds of each first batch.

    Attributes:
        network: its name in `keras.applications`.
        frozen: whether only the head is trained.
        times: milliseconds per example, by arm.
        work: the same in CPU time, of all threads.
        firsts: seconds of the first batch, by arm.
    """

    keys = ("network", "frozen")
    network: str
    frozen: bool
    times: dict[str, float]
    work: dict[str, float]
    firsts: dict[str, float]

    @property
    def missed(self) -> bool:
        """Whether XLA makes this network slower, by the clock and by CPU time."""
        return all(
            found["compiled"] > found["not compiled"]
            for found in (self.times, self.work)
        )


def measure(arguments: list[str]) -> Iterator[Application]:
    """Yields each network."""
    flags = {"frozen": False}
    chosen = command.options("applications", __doc__, arguments, NETWORKS, **flags)
    # Of first batches that take ten seconds, and of layers that normalise one example.
    warnings.simplefilter("ignore")
    for name in chosen.names:
        firsts, passes = {}, {}
        for arm in _ARMS:
            firsts[arm], passes[arm] = _trained(name, arm, chosen.frozen)
        times: dict[str, list[_Pass]] = {arm: [] for arm in _ARMS}
        for _ in range(REPEATS):
            for arm, run in passes.items():
                times[arm].append(run())
        wall, work = (
            {arm: statistics.median(p[i] for p in times[arm]) for arm in _ARMS}
            for i in range(2)
        )
        yield Application(name, chosen.frozen, wall, work, firsts)


def network(name: str, side: int, frozen: bool, num_classes: int) -> Any:
    """One of `keras.applications` with random weights and a new head, not compiled."""
    import keras

    keras.utils.set_random_seed(0)
    base = getattr(keras.applications, name)(
        input_shape=(side, side, 3), include_top=False, weights=None, pooling="avg"
    )
    base.trainable = not frozen
    return keras.Sequential(
        [keras.Input((side, side, 3)), base, keras.layers.Dense(num_classes)]
    )


def _trained(name: str, arm: str, frozen: bool) -> tuple[float, Callable[[], _Pass]]:
    # Seconds of the first batch, and a pass.
    import keras
    import numpy as np

    from keras_sgd_plus import SGDPlus

    side = _LEAST_SIDES.get(name, _SIDE)
    model = network(name, side, frozen, _CLASSES)
    if arm == "keras":
        optimizer: Any = keras.optimizers.SGD(1e-4)
    else:
        setting = "auto" if arm == "compiled" else False
        optimizer = SGDPlus(1e-4, order="given", jit_compile=setting)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, side, side, 3)).astype("float32")
    y = rng.integers(0, _CLASSES, BATCH)

    def train() -> _Pass:
        start, work = time.perf_counter(), time.process_time()
        model.train_on_batch(x, y)
        wall, work = time.perf_counter() - start, time.process_time() - work
        return wall / BATCH * 1e3, work / BATCH * 1e3

    first, _ = train()
    train()  # TensorFlow sets its kernels up for a while
    return first * BATCH / 1e3, train
