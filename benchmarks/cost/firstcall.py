"""What the first `fit` on one batch costs: tracing and compilation.

`python -m benchmarks firstcall [id ...]`, with workloads of `speed` and the models of
`first_models`. CPU seconds beside those of the clock: compilation uses several cores,
and a busy machine changes the clock more. New models of all arms take turns in one
process per workload. Then processes are started anew, with and without the
compilations that one of them has kept; each trains one model.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import tempfile
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
FIRST, SECOND = "SGDPlus, first process", "SGDPlus, second process"
PROCESSES = (FIRST, SECOND, JIT, PLAIN)
MODELS = (
    *("mlp-784-128-10", "mlp-784-128-10-m0.9", "mlp-784-2048-2048-10"),
    *("cnn", "lstm-20x8", "transformer-32x64"),
    *("mobilenetv2-96-frozen", "critic"),
)
DEEP = (  # started in one process alone
    *("unet-32", "mixer-32", "transformer-2x64", "bilstm-32"),
    *("convlstm-16", "resnet-1d-64", "restoration-32"),
)
REPEATS, RESTARTS, NUM_EXAMPLES = 5, 3, 64


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


@dataclass(frozen=True)
class Restarts(Finding):
    """Seconds of the first call of a process, by arm.

    Attributes:
        workload: its id.
        cpu: of the processor, all threads together.
        clock: of the clock.
        loading: of the clock, that TensorFlow took in the second process from the graph
            of the loop to code that runs, on one thread.
        same_bits: whether the weights of both processes were equal to the last bit.
    """

    workload: str
    cpu: dict[str, float]
    clock: dict[str, float]
    loading: float
    same_bits: bool

    @property
    def spared(self) -> float:
        """The part of XLA's CPU seconds that the second process spared."""
        spared = self.cpu[FIRST] - self.cpu[SECOND]
        return spared / (spared + self.loading)

    @property
    def missed(self) -> bool:
        """Whether other weights came out."""
        return not self.same_bits


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Yields each workload, from processes of its own."""
    every = (*MODELS, *DEEP)
    for workload_id in command.options("firstcall", __doc__, arguments, every).names:
        found = in_process(first_calls, workload_id, environment=WITHOUT_FLAGS)
        yield FirstCalls(workload_id, *found)
        if workload_id not in DEEP:
            yield restarts(workload_id)


def restarts(workload_id: str) -> Restarts:
    """Starts processes, arm by arm, each pair of ours with a new folder."""
    found: dict[str, list[list[Any]]] = {arm: [] for arm in PROCESSES}
    logged = {"TF_CPP_VMODULE": "device_compilation_profiler=1"}
    environment = {**WITHOUT_FLAGS, **logged, "TF_CPP_MIN_LOG_LEVEL": "0"}
    for _ in range(RESTARTS):
        with tempfile.TemporaryDirectory() as folder:
            for arm in PROCESSES:
                call = in_process(
                    first_call, workload_id, arm, folder, environment=environment
                )
                found[arm].append(call)
    cpu, clock = (
        {arm: statistics.median(c[i] for c in calls) for arm, calls in found.items()}
        for i in range(2)
    )
    loading = statistics.median(call[2] for call in found[SECOND])
    digests = {call[3] for arm in (FIRST, SECOND) for call in found[arm]}
    return Restarts(workload_id, cpu, clock, loading, len(digests) == 1)


def first_call(workload_id: str, arm: str, folder: str) -> list[Any]:
    """Of one process: seconds of CPU and clock, of XLA; a digest of the weights."""
    import keras

    from keras_sgd_plus import SGDPlus, keep_compilations

    is_ours = arm in (FIRST, SECOND)
    if is_ours:
        keep_compilations(folder)
    keras.utils.set_random_seed(0)
    compiled, (x, y), rates = _made(workload_id)
    settings = {"jit_compile": True} if arm == JIT else {}
    optimizer = SGDPlus(**rates, seed=0) if is_ours else keras.optimizers.SGD(**rates)
    model = compiled(optimizer, **settings)
    (cpu, clock), said = _with_errors(lambda: timed_fit(model, x, y))
    compilations = re.findall(r"Compiled \S+ 1 times, compile time: (\d+) us", said)
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    digest = hashlib.sha256(weights).hexdigest()
    return [cpu, clock, sum(map(int, compilations)) / 1e6, digest]


def _with_errors(call: Callable[[], Any]) -> tuple[Any, str]:
    # What a call gives, and what TensorFlow wrote on standard error meanwhile.
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        return result, file.read().decode(errors="replace")


def _made(workload_id: str) -> tuple[Callable[..., Any], Any, dict[str, float]]:
    # How to compile a model, its data, and the settings of both optimizers.
    from benchmarks.arms import keras_arms  # it loads TensorFlow
    from benchmarks.cost.first_models import FIRST_MODELS

    if workload_id in FIRST_MODELS:
        first_model = FIRST_MODELS[workload_id]
        rates = {"learning_rate": 1e-4, "momentum": 0.0}
        return first_model.compiled, first_model.data(NUM_EXAMPLES), rates
    workload = WORKLOADS[workload_id]
    rates = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}
    return partial(keras_arms.compiled, workload), workload.data(NUM_EXAMPLES), rates


def first_calls(workload_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """Medians by arm: seconds of the processor, and of the clock."""
    import keras

    from keras_sgd_plus import SGDPlus
    from keras_sgd_plus._lazy import block_plan

    compiled, (x, y), rates = _made(workload_id)

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
