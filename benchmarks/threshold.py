"""The loop alone under XLA's own small-while-loop threshold, ours, and one option more.

XLA reads the setting once per process, so each arm is a process of its own; they run
alternately. Also printed: what computing the order costs, without XLA and with it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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


def _best(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def child() -> None:
    """Prints, as JSON, microseconds per example by model and momentum."""
    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS

    found = {}
    for name, momenta in MODELS.items():
        for momentum in momenta:
            workload = replace(WORKLOADS[name], momentum=momentum, learning_rate=1e-4)
            count = min(NUM_EXAMPLES, workload.num_examples)
            run, _ = keras_arms.timed_loop(workload, count)
            run()
            title = f"{name.removesuffix('-m0.9')}, momentum {momentum}"
            found[title] = min(run() for _ in range(REPEATS))
    print(json.dumps(found))


def _order_costs() -> None:
    import tensorflow as tf

    from keras_sgd_plus._order import visiting_order

    print("\nNanoseconds per example for the order of a batch:\n")
    print("| batch | without XLA | with XLA |\n| --- | --- | --- |")
    for size in (1024, 65_536, 200_000):
        costs = []
        for jit_compile in (False, True):
            order = tf.function(
                lambda counter, size=size: visiting_order(1, counter, size),
                jit_compile=jit_compile,
            )
            counter = tf.constant(0, tf.int64)
            taken = _best(lambda order=order, c=counter: order(c).numpy())
            costs.append(taken / size * 1e9)
        print(f"| {size:,} | {costs[0]:.0f} | {costs[1]:.0f} |")


def main(arguments: list[str] | None = None) -> int:
    """Prints both tables."""
    del arguments
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for _ in range(ROUNDS):
        for name, options in SETTINGS.items():
            flags = f"--xla_backend_extra_options={options}"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.threshold"],
                env={**os.environ, "XLA_FLAGS": flags},
                check=True,
                capture_output=True,
                text=True,
            )
            runs[name].append(json.loads(done.stdout))
            print(".", end="", file=sys.stderr, flush=True)
    print("\nMicroseconds per example, the loop alone, by threshold in bytes:\n")
    print(f"| model | {' | '.join(SETTINGS)} |\n| --- | --- | --- | --- |")
    for model in runs["1,024"][0]:
        cells = [statistics.median(r[model] for r in found) for found in runs.values()]
        print(f"| {model} | {' | '.join(f'{c:.3g}' for c in cells)} |")
    _order_costs()
    return 0


if __name__ == "__main__":
    child()
