"""The first call and the peak of memory: what a pass's time does not show.

Each figure comes from processes of their own (`python -m benchmarks.extremes ...`).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FIRST_CALL, MEMORY = 1.5, 1.2  # bounds; see `verdicts`
LARGE, SMALL = 65_536, 64
_MODELS = ("mlp-784-128-10", "cnn", "lstm-20x8", "transformer-32x64")


def first_calls(workload_id: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of the first `fit` on one batch of 64, new models alternating.

    Keras compiles its step of one example with `jit_compile=True`; what both pay once
    per process is paid before.
    """
    import keras

    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS
    from keras_sgd_plus import SGDPlus

    workload = WORKLOADS[workload_id]
    x, y = workload.data(SMALL)
    rates = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}

    def seconds(optimizer: Any, count: int, **settings: Any) -> float:
        model = keras_arms.compiled(workload, optimizer, **settings)
        start = time.perf_counter()
        model.fit(x[:count], y[:count], batch_size=count, verbose=0)
        return time.perf_counter() - start

    found: dict[str, list[float]] = {"SGDPlus": [], "keras SGD, jit_compile": []}
    for repeat in range(repeats + 1):
        ours = seconds(SGDPlus(**rates), SMALL)
        theirs = seconds(keras.optimizers.SGD(**rates), 1, jit_compile=True)
        if repeat:
            found["SGDPlus"].append(ours)
            found["keras SGD, jit_compile"].append(theirs)
    return found


def peak_memory(workload_id: str, batch_size: int, optimizer_name: str) -> float:
    """Bytes at the peak of one `fit` on one batch; batch size 0 builds and stops."""
    import keras

    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS
    from keras_sgd_plus import SGDPlus

    workload = WORKLOADS[workload_id]
    optimizers = {"SGDPlus": SGDPlus, "keras": keras.optimizers.SGD}
    model = keras_arms.compiled(workload, optimizers[optimizer_name](0.001))
    if batch_size:
        x, y = workload.data(batch_size)
        model.fit(x, y, batch_size=batch_size, verbose=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def batch_bytes(workload_id: str, batch_size: int) -> float:
    """Bytes of x and y."""
    from benchmarks.workloads import WORKLOADS

    x, y = WORKLOADS[workload_id].data(4)
    return (x.nbytes + y.nbytes) / 4 * batch_size


def in_process(*arguments: Any) -> Any:
    """The answer of one of the functions above, run in a new process."""
    command = [sys.executable, "-m", "benchmarks.extremes", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1][:200])
    return json.loads(found.stdout.splitlines()[-1])


def verdicts(quick: bool) -> list[tuple[str, str, str, str, str]]:
    """The targets: workload, what, figure, bound, met."""
    lines = []
    for workload_id in _MODELS:
        times = in_process("first_calls", workload_id, 2 if quick else 5)
        ours, theirs = (statistics.median(v) for v in times.values())
        text = f"first call: SGDPlus {ours:.2f} s / keras jit_compile {theirs:.2f} s"
        met = "yes" if ours <= FIRST_CALL * theirs else "NO"
        bound = f"<= {FIRST_CALL:g}x"
        lines.append((workload_id, text, f"{ours / theirs:.3g}x", bound, met))
    base, small, large = (
        in_process("peak_memory", "cnn", size, "SGDPlus") for size in (0, SMALL, LARGE)
    )
    bound = 2 * batch_bytes("cnn", LARGE) + MEMORY * (small - base)
    text = f"peak memory of fit at batch {LARGE:,} above TensorFlow's own"
    met = "yes" if large - base <= bound else "NO"
    mib = 2**20
    figures = f"{(large - base) / mib:.0f} MiB", f"<= {bound / mib:.0f} MiB"
    lines.append(("cnn", text, *figures, met))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Prints the targets of this module alone."""
    lines = verdicts(bool(arguments and "--quick" in arguments))
    print(
        "| workload | figure | value | target | met |\n| --- | --- | --- | --- | --- |"
    )
    for line in lines:
        print(f"| {' | '.join(line)} |")
    return int(any(line[-1] != "yes" for line in lines))


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    values = [int(v) if v.isdigit() else v for v in given]
    functions = {"first_calls": first_calls, "peak_memory": peak_memory}
    print(json.dumps(functions[name](*values)))
