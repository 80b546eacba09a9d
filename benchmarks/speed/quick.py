"""The MLP 784-128-10 through `fit`: SGDPlus against Keras at batch sizes 1 and 32.

`python -m benchmarks quick`. The arms take turns in one process, from the same weights,
in given order. Keras at batch size 1 gets fewer examples per repeat, since it needs a
millisecond for each. The quality of every arm stands beside its time: the loss on the
first 1,024 examples after one pass over them, which must agree where the algorithm is
the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.shared import command
from benchmarks.shared.finding import Finding

REPEATS = 9
NUM_EXAMPLES, NUM_SLOW = 32_768, 1024
TARGET = 50  # times faster per example, momentum 0


@dataclass
class Arm:
    """One way to train, and its measurements."""

    name: str
    batch_size: int
    num_examples: int
    seconds: list[float] = field(default_factory=list)  # per example
    loss: float = 0.0

    @property
    def median(self) -> float:
        """Seconds per example."""
        return statistics.median(self.seconds)

    @property
    def updates_per_epoch(self) -> int:
        """Updates that an epoch of `NUM_EXAMPLES` makes: SGDPlus has one each."""
        is_ours = self.name.startswith("SGDPlus")
        return NUM_EXAMPLES if is_ours else NUM_EXAMPLES // self.batch_size


@dataclass(frozen=True)
class Compared(Finding):
    """The arms at one momentum: SGDPlus, Keras at batch size 1, and at 32."""

    keys = ("momentum",)
    momentum: float
    arms: list[Arm]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Compared:
        """The finding whose fields were stored as `values`."""
        return cls(values["momentum"], [Arm(**arm) for arm in values["arms"]])

    @property
    def times_faster(self) -> float:
        """SGDPlus against Keras at batch size 1."""
        ours, theirs, _ = self.arms
        return theirs.median / ours.median

    @property
    def agree(self) -> bool:
        """Whether the two arms of one algorithm reach the same loss."""
        ours, theirs, _ = self.arms
        return abs(ours.loss - theirs.loss) < 1e-4 * theirs.loss

    @property
    def missed(self) -> bool:
        """Whether the losses differ, or the target is missed; momentum has none."""
        return not self.agree or (not self.momentum and self.times_faster < TARGET)


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


def _compared(momentum: float) -> Compared:
    """Trains every arm; the first pass compiles and gives the quality."""
    import keras

    from keras_sgd_plus import SGDPlus

    settings = {"learning_rate": 0.001, "momentum": momentum}
    x, y = _data()
    few = x[:NUM_SLOW], y[:NUM_SLOW]

    arms = [
        Arm("SGDPlus, batch 1,024", NUM_SLOW, NUM_EXAMPLES),
        Arm("keras SGD, batch 1", 1, NUM_SLOW),
        Arm("keras SGD, batch 32", 32, NUM_EXAMPLES),
    ]
    models = [
        _model(SGDPlus(**settings, order="given")),
        *(_model(keras.optimizers.SGD(**settings)) for _ in arms[1:]),
    ]
    for arm, model in zip(arms, models, strict=True):
        # The same few examples for every arm, else their losses could not be compared.
        _seconds(model, *few, arm.batch_size)
        arm.loss = model.evaluate(*few, batch_size=NUM_SLOW, verbose=0)
        if arm.num_examples > NUM_SLOW:  # so that no repeat pays for a first call
            _seconds(model, x, y, arm.batch_size)
    for _ in range(REPEATS):
        for arm, model in zip(arms, models, strict=True):
            rows = slice(arm.num_examples)
            taken = _seconds(model, x[rows], y[rows], arm.batch_size)
            arm.seconds.append(taken / arm.num_examples)
    return Compared(momentum, arms)


def measure(arguments: list[str]) -> Iterator[Compared]:
    """Yields the arms without and with momentum."""
    command.options("quick", __doc__, arguments)
    for momentum in (0.0, 0.9):
        yield _compared(momentum)
