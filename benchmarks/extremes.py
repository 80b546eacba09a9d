"""The first call and the peak of memory: what a pass's time does not show.

Each figure comes from processes of their own (`python -m benchmarks.extremes ...`).
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import record

FIRST_CALL, MEMORY = 1.5, 1.2  # bounds; see `verdicts`
LARGE, SMALL = 65_536, 64
MIB = 2**20
_MODELS = ("mlp-784-128-10", "cnn", "lstm-20x8", "transformer-32x64")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Verdict = tuple[str, str, str, str, str]  # workload, what, figure, bound, met


def first_calls(workload_id: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of the first `fit` on one batch of 64, new models alternating.

    Keras compiles its step of one example with `jit_compile=True`; what both pay once
    per process is paid before. Garbage of the model before is collected before.
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
        gc.collect()
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


def peak_memory(workload_id: str, batch_size: int, how: str) -> float:
    """Bytes at the peak of one pass over one batch, above a process with the model.

    Args:
        workload_id: what is trained.
        batch_size: how many examples; they are in the figure.
        how: "SGDPlus fit", "SGDPlus step" (`train_step` on tensors), "keras fit" or
            "idle fit", which trains nothing.
    """
    import keras

    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS
    from keras_sgd_plus import SGDPlus

    workload = WORKLOADS[workload_id]
    make: Any = SGDPlus if how.startswith("SGDPlus") else keras.optimizers.SGD
    model = keras_arms.compiled(workload, make(workload.learning_rate))
    if how == "idle fit":
        model = keras_arms.idle(model)
    first_x, first_y = workload.data(4)
    gc.collect()
    base = _memory("VmRSS")
    # Whole-batch temporaries of making the data would be the peak.
    x, y = (_repeated(part, batch_size) for part in (first_x, first_y))
    _RESET.write_text("5")
    if how == "SGDPlus step":
        import tensorflow as tf

        batch = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        del x, y  # as in a loop over a dataset
        model.optimizer.train_step(model, batch)
    else:
        model.fit(x, y, batch_size=batch_size, verbose=0)
    return _memory("VmHWM") - base


def _repeated(rows: Any, count: int) -> Any:
    import numpy as np

    result = np.empty((count, *rows.shape[1:]), rows.dtype)
    result[:] = rows[:1]
    for i, row in enumerate(rows):
        result[i :: len(rows)] = row
    return result


def _memory(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024.0


def batch_bytes(workload_id: str, batch_size: int) -> float:
    """Bytes of x and y."""
    from benchmarks.workloads import WORKLOADS

    x, y = WORKLOADS[workload_id].data(4)
    return (x.nbytes + y.nbytes) / 4 * batch_size


def in_process(module: str, *arguments: Any, flags: str | None = None) -> Any:
    """The answer of a function of a module here, run in a new process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    if found.returncode:
        lines = found.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1][:200])
    return json.loads(found.stdout.splitlines()[-1])


def serve(functions: dict[str, Any]) -> None:
    """Prints what the function named on the command line gives, as JSON."""
    name, *given = sys.argv[1:]
    values = [int(v) if v.isdigit() else v for v in given]
    print(json.dumps(functions[name](*values)))


def verdicts(quick: bool) -> list[Verdict]:
    """The targets on first calls and memory."""
    lines = [_first_call(workload_id, 3 if quick else 7) for workload_id in _MODELS]
    if not _RESET.exists():
        text = "peak memory at batch 65,536: missing, needs Linux's /proc"
        return [*lines, ("cnn", text, "no figure", "-", "no")]
    return lines + _memories()


def _first_call(workload_id: str, repeats: int) -> Verdict:
    times = in_process("extremes", "first_calls", workload_id, repeats)
    ours, theirs = (statistics.median(v) for v in times.values())
    text = f"first call: SGDPlus {ours:.2f} s / keras jit_compile {theirs:.2f} s"
    met = "yes" if ours <= FIRST_CALL * theirs else "NO"
    return (workload_id, text, f"{ours / theirs:.3g}x", f"<= {FIRST_CALL:g}x", met)


def _memories() -> list[Verdict]:
    small = in_process("extremes", "peak_memory", "cnn", SMALL, "SGDPlus fit")
    bound = 2 * batch_bytes("cnn", LARGE) + MEMORY * small
    lines = []
    for how in ("SGDPlus fit", "SGDPlus step", "idle fit", "keras fit"):
        peak = in_process("extremes", "peak_memory", "cnn", LARGE, how)
        met = "yes" if peak <= bound else "NO"
        if not how.startswith("SGDPlus"):
            met = "-"  # beside it, for comparison
        text = f"peak memory at batch {LARGE:,}, {how}"
        figures = f"{peak / MIB:.0f} MiB", f"<= {bound / MIB:.0f} MiB"
        lines.append(("cnn", text, *figures, met))
    return lines


def table(lines: list[Verdict]) -> str:
    """A Markdown table of targets."""
    head = ["workload", "figure", "value", "target", "met"]
    return record.markdown(head, [list(line) for line in lines])


def show(lines: list[Verdict]) -> bool:
    """Prints a table of targets; whether one of them is missed."""
    print(table(lines))
    return any(line[-1].lower().startswith("no") for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the targets of this module alone."""
    return int(show(verdicts(bool(arguments and "--quick" in arguments))))


if __name__ == "__main__":
    serve({"first_calls": first_calls, "peak_memory": peak_memory})
