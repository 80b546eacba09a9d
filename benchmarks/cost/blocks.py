"""Where blocks win: the loop with blocks of several lengths, against single updates.

`python -m benchmarks blocks [--one-thread] [NxM ...]`. One hidden layer of M units on
N inputs, and one output; with a M of one, the layer is the output. All loops of a shape
take turns. `--one-thread` keeps the matrix products of a block on one core.
Hand-written C, which has one thread, walks the same layers in blocks of 64. Without
arguments all shapes are measured, without momentum and with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from benchmarks.arms.workloads import Workload
from benchmarks.cost import loops
from benchmarks.shared import command
from benchmarks.shared.finding import Finding

SHAPES = (
    *("20x1", "64x16", "64x64", "132x32", "132x128", "784x1", "784x10", "784x32"),
    *("784x128", "784x512", "4096x16", "2048x2048", "8192x4096"),
)
LENGTHS = (16, 32, 64, 128, 256)
MOMENTA = (0.0, 0.9)
REPEATS = 5
_BYTES = 2e9  # of kernels that a pass may read
_MOST_IN_C = 10**7  # entries of a kernel, of which C has a copy


@dataclass(frozen=True)
class Blocks(Finding):
    """Microseconds per example of the loop, by the length of a block.

    Attributes:
        shape: "NxM".
        momentum: of the optimizer.
        times: by length; "1" is the loop without blocks.
        ours: the length that SGDPlus takes; 1 for none.
        native: of hand-written C in blocks of 64; None without a compiler.
        agree: whether the losses agree.
        threads: of the loop; None for TensorFlow's default, all cores.
    """

    keys = ("shape", "momentum", "threads")
    shape: str
    momentum: float
    times: dict[str, float]
    ours: int
    native: float | None
    agree: bool
    threads: int | None

    @property
    def missed(self) -> bool:
        """Whether blocks change the loss."""
        return not self.agree


def measure(arguments: list[str]) -> Iterator[Blocks]:
    """Yields each shape."""
    flags = {"one_thread": False}
    chosen = command.options("blocks", __doc__, arguments, SHAPES, **flags)
    if chosen.one_thread:
        loops.use_one_thread()
    threads = 1 if chosen.one_thread else None
    for momentum in MOMENTA:
        for shape in chosen.names:
            yield _measure(shape, momentum, threads)


def _measure(shape: str, momentum: float, threads: int | None) -> Blocks:
    from keras_sgd_plus._lazy.block_plan import block_size

    num_inputs, num_outputs = (int(part) for part in shape.split("x"))
    count = int(_BYTES / (4 * num_inputs * num_outputs)) // 128 * 128
    count = min(max(count, 128), 4_096)
    variants = [
        _loop(num_inputs, num_outputs, count, length, momentum)
        for length in (None, *LENGTHS)
    ]
    if native := _native(num_inputs, num_outputs, count, momentum):
        variants.append(native)
    times, agree = loops.in_turn(shape, variants, REPEATS)
    by_length = dict(zip(map(str, (1, *LENGTHS)), times, strict=False))
    return Blocks(
        shape,
        momentum,
        by_length,
        block_size(num_inputs, num_outputs, momentum > 0) or 1,
        times[-1] if native else None,
        agree,
        threads,
    )


def _data(num_inputs: int, count: int) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(count, num_inputs)).astype("float32")
    return x, x[:, :1]


def _model(num_inputs: int, num_outputs: int) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    hidden = [] if num_outputs == 1 else [keras.layers.Dense(num_outputs, "relu")]
    return keras.Sequential(
        [keras.Input((num_inputs,)), *hidden, keras.layers.Dense(1)]
    )


def _native(
    num_inputs: int, num_outputs: int, count: int, momentum: float
) -> loops.Loop | None:
    if num_inputs * num_outputs > _MOST_IN_C:
        return None
    try:
        from benchmarks.arms import names, native_arms
    except ImportError:  # no compiler
        return None
    hidden = () if num_outputs == 1 else (num_outputs,)
    sizes = (num_inputs, *hidden, 1)
    rate = 1e-4 / num_inputs
    workload = Workload("blocks", "dense", sizes, "mse", rate, momentum)
    weights = _model(num_inputs, num_outputs).get_weights()
    arm: Any = native_arms.ARMS[names.C_BLOCKS](
        workload, weights, *_data(num_inputs, count)
    )
    arm.train()

    def run() -> float:
        start = time.perf_counter()
        arm.train()
        return (time.perf_counter() - start) / count * 1e6

    return run, arm.loss


def _loop(
    num_inputs: int, num_outputs: int, count: int, length: int | None, momentum: float
) -> loops.Loop:
    import tensorflow as tf

    from keras_sgd_plus import SGDPlus
    from keras_sgd_plus._lazy import block_plan

    model = _model(num_inputs, num_outputs)
    optimizer = SGDPlus(1e-4 / num_inputs, momentum, order="given")
    model.compile(optimizer, "mse")
    data = tuple(map(tf.constant, _data(num_inputs, count)))

    def train() -> float:
        return float(optimizer.train_step(model, data)["loss"])

    with mock.patch.object(block_plan, "block_size", lambda *_: length):
        loss = train()  # compiles

    def run() -> float:
        start = time.perf_counter()
        train()
        return (time.perf_counter() - start) / count * 1e6

    return run, loss
