"""The loop alone under XLA's own small-while-loop threshold, ours, and one option more.

`python -m benchmarks threshold`. XLA reads the setting once per process, so each arm is
a process of its own; they take turns. The second table is what the order of a batch
costs, without XLA and with it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.cost import loops
from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.processes import in_process

_OPTION = "xla_cpu_small_while_loop_byte_threshold="
SETTINGS = {
    "1,024": f"{_OPTION}1024",  # XLA's default
    "10,000,000": f"{_OPTION}10000000",  # ours
    "with multi-output fusion": f"{_OPTION}10000000,"
    "xla_cpu_use_multi_output_fusion=true",
}
MODELS = {  # of the speed benchmark, and momentum
    "linear-20": (0.0, 0.9),
    "mlp-784-32-32-10-m0.9": (0.0, 0.9),
    "mlp-784-128-10": (0.0, 0.9),
    "mlp-784-2048-2048-10": (0.0,),
    "cnn": (0.0,),
    "lstm-20x8": (0.0,),
}
ROUNDS, REPEATS, NUM_EXAMPLES = 2, 5, 2048  # at most so many examples


@dataclass(frozen=True)
class Thresholds(Finding):
    """Microseconds per example, by model and then by setting."""

    keys = ()
    times: dict[str, list[float]]


@dataclass(frozen=True)
class Order(Finding):
    """Nanoseconds per example for the order of a batch."""

    keys = ("batch_size",)
    batch_size: int
    without_xla: float
    with_xla: float


def measure(arguments: list[str]) -> Iterator[Finding]:
    """Yields the loops of all settings, then the order of each batch."""
    command.options("threshold", __doc__, arguments)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(ROUNDS):
        for name, options in SETTINGS.items():
            flags = {"XLA_FLAGS": f"--xla_backend_extra_options={options}"}
            runs[name].append(in_process(times_of_loops, environment=flags))
            print(".", end="", file=sys.stderr, flush=True)
    # Medians of rounds, each of them the best of its passes: a process may be slow.
    yield Thresholds(
        {
            model: [statistics.median(r[model] for r in rs) for rs in runs.values()]
            for model in runs["1,024"][0]
        }
    )
    for size in (1024, 65_536, 200_000):
        yield Order(size, *(_order_cost(size, jit) for jit in (False, True)))


def times_of_loops() -> dict[str, float]:
    """Microseconds per example by model and momentum, under this process's flags."""
    found = {}
    for name, momenta in MODELS.items():
        for momentum in momenta:
            # A small rate: the one of the workload may diverge at another momentum.
            workload = replace(WORKLOADS[name], momentum=momentum, learning_rate=1e-4)
            count = min(NUM_EXAMPLES, workload.num_examples)
            run, _ = loops.loop_of(workload, count)
            run()
            title = f"{name.removesuffix('-m0.9')}, momentum {momentum}"
            found[title] = min(run() for _ in range(REPEATS))
    return found


def _order_cost(batch_size: int, jit_compile: bool) -> float:
    import tensorflow as tf

    from keras_sgd_plus._batch.walk_batch import visiting_order

    order = tf.function(
        lambda counter: visiting_order(1, counter, batch_size), jit_compile=jit_compile
    )
    counter = tf.constant(0, tf.int64)
    return _best(lambda: order(counter).numpy()) / batch_size * 1e9


def _best(function: Callable[[], Any]) -> float:
    function()  # compiles
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
