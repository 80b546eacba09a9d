"""What the first `fit` on one batch costs: tracing and compilation.

`python -m benchmarks firstcall [id ...]`, with workloads of `speed` and the models of
`first_models`. CPU seconds beside those of the clock: compilation uses several cores,
and a busy machine changes the clock more. New models of all arms take turns in one
process per workload.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.processes import WITHOUT_FLAGS, in_process
from benchmarks.timing.once import timed_fit

OURS, SINGLE = "SGDPlus", "without blocks"
JIT, PLAIN = "Keras, jit_compile", "Keras"
ARMS = (OURS, SINGLE, JIT, PLAIN)
MODELS = (
    *("mlp-784-128-10", "mlp-784-128-10-m0.9", "mlp-784-2048-2048-10"),
    *("cnn", "lstm-20x8", "transformer-32x64"),
    *("mobilenetv2-96-frozen", "critic"),
)
REPEATS, NUM_EXAMPLES = 5, 64


@dataclass(frozen=True)
class FirstCalls(Finding):
    """Seconds of the first call, by arm.

    Attributes:
        workload: its id.
        cpu: of the processor, all threads together.
        clock: of the clock.
    """

    workload: str
    cpu: dict[str, float]
    clock: dict[str, float]


def measure(arguments: list[str]) -> Iterator[FirstCalls]:
    """Yields each workload, from a process of its own."""
    for workload_id in command.options("firstcall", __doc__, arguments, MODELS).names:
        found = in_process(first_calls, workload_id, environment=WITHOUT_FLAGS)
        yield FirstCalls(workload_id, *found)


def first_calls(workload_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """Medians by arm: seconds of the processor, and of the clock."""
    import keras

    from benchmarks.arms import keras_arms  # it loads TensorFlow
    from benchmarks.cost.first_models import FIRST_MODELS
    from keras_sgd_plus import SGDPlus
    from keras_sgd_plus._lazy import block_plan

    compiled: Callable[..., Any]
    if workload_id in FIRST_MODELS:
        first_model = FIRST_MODELS[workload_id]
        compiled, (x, y) = first_model.compiled, first_model.data(NUM_EXAMPLES)
        rates = {"learning_rate": 1e-4, "momentum": 0.0}
    else:
        workload = WORKLOADS[workload_id]
        compiled = partial(keras_arms.compiled, workload)
        x, y = workload.data(NUM_EXAMPLES)
        rates = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}

    def first_fit(optimizer: Any, **settings: Any) -> tuple[float, float]:
        return timed_fit(compiled(optimizer, **settings), x, y)

    plain = keras.optimizers.SGD

    def single() -> tuple[float, float]:
        with mock.patch.object(block_plan, "block_size", lambda *_: None):
            return first_fit(SGDPlus(**rates))

    arms: dict[str, Callable[[], tuple[float, float]]] = {
        OURS: lambda: first_fit(SGDPlus(**rates)),
        SINGLE: single,
        JIT: lambda: first_fit(plain(**rates), jit_compile=True),
        PLAIN: lambda: first_fit(plain(**rates)),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for repeat in range(REPEATS + 1):
        for name, arm in arms.items():
            seconds = arm()
            if repeat:  # the first round pays what a process pays once
                found[name].append(seconds)
    cpu, clock = (
        {name: statistics.median(pair[i] for pair in ps) for name, ps in found.items()}
        for i in range(2)
    )
    return cpu, clock
