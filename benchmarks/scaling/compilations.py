"""How long the first call takes and how often XLA compiles.

Each figure comes from a new process: only there are all compilations still to come.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.shared.processes import WITHOUT_FLAGS, in_process
from benchmarks.timing.measuring import Point
from benchmarks.timing.once import timed_fit

_DEPTHS = (1, 4, 16, 32)
_LENGTHS = (64, 1_000, 65_536)


def by_depth() -> list[Point]:
    """First calls and compilations of stacks of Dense layers."""
    points = []
    for depth in _DEPTHS:
        found = in_process(first_call, depth, environment=WITHOUT_FLAGS)
        points += [Point("depth", depth, k, v, "s") for k, v in found.items()]
        count = _compilations(compile_once, depth)
        points.append(Point("depth", depth, "compilations", count, ""))
    return points


def by_length() -> list[Point]:
    """First calls on batches of several lengths, and compilations of all of them."""
    points = []
    for length in _LENGTHS:
        found = in_process(first_call_of_length, length, environment=WITHOUT_FLAGS)
        points.append(Point("batch length", length, "first call", found, "s"))
    # SGDPlus pads a batch to one of a few sizes: some of these lengths share one.
    lengths = (1, 2, 3, 50, 64, 65, 100, 128, 500, 1000)
    for count in (1, 4, 7, len(lengths)):
        found = _compilations(compile_lengths, lengths[:count])
        points.append(Point("lengths seen", count, "compilations", found, ""))
    return points


def _compilations(function: Callable[..., Any], argument: Any) -> int:
    # XLA writes a file per module that it compiles: counted without asking TensorFlow.
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        in_process(function, argument, environment={"XLA_FLAGS": flags})
        modules = Path(folder).glob("*walk_and_commit*.before_optimizations.txt")
        count = len(list(modules))
    if not count:
        raise SystemExit(f"{function.__name__}: XLA wrote no module of the loop")
    return count


def _deep(depth: int, optimizer: Any, **settings: Any) -> Any:
    import keras

    hidden = [keras.layers.Dense(64, "relu") for _ in range(depth)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **settings)
    return model


def _fit(model: Any, num_examples: int) -> float:
    import numpy as np

    x = np.ones((num_examples, 64), "float32")
    return timed_fit(model, x, x[:, :1])[1]


def first_call(depth: int, repeats: int = 3) -> dict[str, float]:
    """Seconds of the first `fit` of a stack of Dense layers, ours and Keras's."""
    import keras

    from keras_sgd_plus import SGDPlus

    ours, theirs = [], []
    for _ in range(repeats + 1):
        ours.append(_fit(_deep(depth, SGDPlus(0.001)), 64))
        # Keras compiles its step of one example, which is the body of our loop.
        model = _deep(depth, keras.optimizers.SGD(0.001), jit_compile=True)
        theirs.append(_fit(model, 1))
    return {  # without the first of each, which pays what a process pays once
        "SGDPlus": statistics.median(ours[1:]),
        "keras SGD, jit_compile": statistics.median(theirs[1:]),
    }


def first_call_of_length(num_examples: int, repeats: int = 3) -> float:
    """Seconds of the first `fit` on one batch."""
    from keras_sgd_plus import SGDPlus

    found = [_fit(_deep(2, SGDPlus(0.001)), num_examples) for _ in range(repeats + 1)]
    return statistics.median(found[1:])


def compile_once(depth: int) -> None:
    """Fits once, so that compilations can be counted from outside."""
    from keras_sgd_plus import SGDPlus

    _fit(_deep(depth, SGDPlus(0.001)), 64)


def compile_lengths(lengths: list[int]) -> None:
    """Fits one model on batches of several lengths, as above."""
    from keras_sgd_plus import SGDPlus

    model = _deep(2, SGDPlus(0.001))
    for length in lengths:
        _fit(model, length)
