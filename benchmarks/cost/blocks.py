"""Where blocks win: the loop with blocks of several lengths, against single updates.

`python -m benchmarks blocks [--momentum 0.9] [NxM ...]`. One hidden layer of M units on
N inputs, and one output; with a M of one, the layer is the output. All loops of a shape
take turns. `--one-thread` keeps the matrix products of a block on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from benchmarks.cost import loops
from benchmarks.shared.finding import Finding

SHAPES = (
    *("20x1", "64x16", "64x64", "132x32", "132x128", "784x1", "784x10", "784x32"),
    *("784x128", "784x512", "4096x16", "2048x2048", "8192x4096"),
)
LENGTHS = (32, 64, 128, 256)
REPEATS = 5
_BYTES = 2e9  # of kernels that a pass may read


@dataclass(frozen=True)
class Blocks(Finding):
    """Microseconds per example of the loop, by the length of a block.

    Attributes:
        shape: "NxM".
        momentum: of the optimizer.
        times: by length; 1 is the loop without blocks.
        ours: the length that SGDPlus takes; 1 for none.
        agree: whether the losses agree.
    """

    shape: str
    momentum: float
    times: dict[int, float]
    ours: int
    agree: bool

    @property
    def missed(self) -> bool:
        """Whether blocks change the loss."""
        return not self.agree


def measure(arguments: list[str]) -> Iterator[Blocks]:
    """Yields each shape."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks blocks")
    parser.add_argument("shapes", nargs="*", default=SHAPES, help="such as 784x128")
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--one-thread", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.one_thread:
        loops.use_one_thread()
    from keras_sgd_plus._pending.block_size import block_size

    for shape in chosen.shapes:
        num_inputs, num_outputs = (int(part) for part in shape.split("x"))
        count = int(_BYTES / (4 * num_inputs * num_outputs)) // 128 * 128
        count = min(max(count, 128), 4_096)
        pair = [
            _loop(num_inputs, num_outputs, count, length, chosen.momentum)
            for length in (None, *LENGTHS)
        ]
        times, agree = loops.in_turn(shape, pair, REPEATS)
        by_length = dict(zip((1, *LENGTHS), times, strict=True))
        ours = block_size(num_inputs, num_outputs) or 1
        yield Blocks(shape, chosen.momentum, by_length, ours, agree)


def _loop(
    num_inputs: int, num_outputs: int, count: int, length: int | None, momentum: float
) -> loops.Loop:
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_sgd_plus import SGDPlus
    from keras_sgd_plus._pending import block_plan

    keras.utils.set_random_seed(0)
    hidden = [] if num_outputs == 1 else [keras.layers.Dense(num_outputs, "relu")]
    model: Any = keras.Sequential(
        [keras.Input((num_inputs,)), *hidden, keras.layers.Dense(1)]
    )
    optimizer = SGDPlus(1e-4 / num_inputs, momentum, order="given")
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(count, num_inputs)), tf.float32)
    data = x, x[:, :1]

    def train() -> float:
        return float(optimizer.train_step(model, data)["loss"])

    with mock.patch.object(block_plan, "block_size", lambda n, m: length):
        loss = train()  # compiles

    def run() -> float:
        start = time.perf_counter()
        train()
        return (time.perf_counter() - start) / count * 1e6

    return run, loss
