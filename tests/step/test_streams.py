"""In streams without an end, traces stop growing and memory stays flat."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.twins import dense_data

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux", reason="reads resident memory from /proc"
    ),
    pytest.mark.usefixtures("few_objects"),
]

LARGEST = 64
X, Y = dense_data(LARGEST)
WARM_UP = 400  # calls, which see every size, since TensorFlow remembers each
# TensorFlow's allocators and caches take 0.7 MB in the first 2,000 calls and nothing
# after that. 1 MB is 10 bytes of each of 100,000 calls.
SLACK = 1_000_000

Train = Callable[[Any, Any, Any], Any]


def _train_on_batch(model: Any, x: Any, y: Any) -> Any:
    return model.train_on_batch(x, y)


def _train_step(model: Any, x: Any, y: Any) -> Any:
    return model.optimizer.train_step(model, (x, y))


# The call, the sizes of batches in turn, and the number of traces. Keras, too, traces
# once for the first size and once for any size.
STREAMS: dict[str, tuple[Train, tuple[int, ...], int]] = {
    "one_example": (_train_on_batch, (1,), 1),
    "many_sizes": (_train_on_batch, tuple(range(1, LARGEST + 1)), 2),
    "by_hand": (_train_step, tuple(range(1, LARGEST + 1)), 2),
}


def _usage() -> tuple[int, int]:
    """Resident bytes of this process, and how many objects Python has made."""
    gc.collect()
    num_objects = len(gc.get_objects())
    # Give back memory that earlier tests have freed: it would hide a leak.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), num_objects


@pytest.mark.matrix
@pytest.mark.parametrize("name", list(STREAMS))
def test_stream(name: str, engagements: list[str]) -> None:
    _run_stream(name, 2_000, engagements)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_example", "many_sizes"])
def test_long_stream(name: str, engagements: list[str]) -> None:
    _run_stream(name, 100_000, engagements)


def _run_stream(name: str, num_calls: int, engagements: list[str]) -> None:
    train, sizes, traces = STREAMS[name]
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(SGDPlus(0.001, 0.9), "mse", metrics=["mae"])
    num_examples = 0

    def run(num_calls: int) -> tuple[int, int]:
        nonlocal num_examples
        for i in range(num_calls):
            size = sizes[i % len(sizes)]
            train(model, X[:size], Y[:size])
            num_examples += size
        return _usage()

    bytes_before, objects_before = run(WARM_UP)
    assert len(engagements) == traces
    bytes_after, objects_after = run(num_calls - WARM_UP)
    assert len(engagements) == traces
    assert objects_after - objects_before < 50
    assert bytes_after - bytes_before < SLACK
    assert int(model.optimizer.iterations) == num_examples
