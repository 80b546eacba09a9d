"""The loop alone under XLA's own small-while-loop threshold and under ours.

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
from typing import Any

OPTION = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold="
THRESHOLDS = (1024, 10_000_000)  # XLA's default, ours
MODELS = {
    "linear 20-1": (20, [], 1),
    "mlp 784-32-32-10": (784, [32, 32], 10),
    "mlp 784-128-10": (784, [128], 10),
    "mlp 784-1024-10": (784, [1024], 10),
}
ROUNDS, REPEATS, NUM_EXAMPLES = 2, 5, 2048


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
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_sgd_plus import SGDPlus

    rng = np.random.default_rng(0)
    found = {}
    for name, (inputs, hidden, outputs) in MODELS.items():
        x = tf.constant(rng.random((NUM_EXAMPLES, inputs), dtype="float32"))
        y = tf.constant(rng.random((NUM_EXAMPLES, outputs), dtype="float32"))
        for momentum in (0.0, 0.9):
            layers = [keras.layers.Dense(units, "relu") for units in hidden]
            model = keras.Sequential(
                [keras.Input((inputs,)), *layers, keras.layers.Dense(outputs)]
            )
            optimizer = SGDPlus(1e-4, momentum, order="given")
            model.compile(optimizer, "mse")

            def walk(model: Any = model, x: Any = x, y: Any = y) -> float:
                return float(model.optimizer.train_step(model, (x, y))["loss"])

            found[f"{name}, momentum {momentum}"] = _best(walk) / NUM_EXAMPLES * 1e6
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
    runs: dict[int, list[dict[str, float]]] = {t: [] for t in THRESHOLDS}
    for _ in range(ROUNDS):
        for threshold in THRESHOLDS:
            environment = {**os.environ, "XLA_FLAGS": f"{OPTION}{threshold}"}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.threshold"],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            runs[threshold].append(json.loads(done.stdout))
            print(".", end="", file=sys.stderr, flush=True)
    print("\nMicroseconds per example, the loop alone, by threshold in bytes:\n")
    print(
        f"| model | {' | '.join(f'{t:,}' for t in THRESHOLDS)} |\n| --- | --- | --- |"
    )
    for name in runs[THRESHOLDS[0]][0]:
        cells = [statistics.median(r[name] for r in runs[t]) for t in THRESHOLDS]
        print(f"| {name} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    _order_costs()
    return 0


if __name__ == "__main__":
    child()
