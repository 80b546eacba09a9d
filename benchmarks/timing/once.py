"""The first call and the peak of memory: a process shows each of them once.

The studies call these functions by `shared.processes`, each time in a new process.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

from benchmarks.arms.workloads import WORKLOADS

MIB = 2**20
_FIRST_BATCH = 64
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_can_be_measured() -> bool:
    """Whether the peak of a process can be set back and read: Linux's /proc can."""
    return _RESET.exists()


def first_calls(workload_id: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of the first `fit` on one batch of 64, new models taking turns.

    Keras compiles its step of one example with `jit_compile=True`.
    """
    import keras

    from benchmarks.arms import keras_arms
    from keras_sgd_plus import SGDPlus

    workload = WORKLOADS[workload_id]
    x, y = workload.data(_FIRST_BATCH)
    rates = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}

    def seconds(optimizer: Any, count: int, **settings: Any) -> float:
        model = keras_arms.compiled(workload, optimizer, **settings)
        return timed_fit(model, x[:count], y[:count])[1]

    found: dict[str, list[float]] = {"SGDPlus": [], "keras SGD, jit_compile": []}
    for repeat in range(repeats + 1):
        ours = seconds(SGDPlus(**rates), _FIRST_BATCH)
        theirs = seconds(keras.optimizers.SGD(**rates), 1, jit_compile=True)
        if repeat:  # the first round pays what a process pays once
            found["SGDPlus"].append(ours)
            found["keras SGD, jit_compile"].append(theirs)
    return found


def timed_fit(model: Any, x: Any, y: Any) -> tuple[float, float]:
    """Seconds of one `fit` on one batch: of the processor, and of the clock."""
    gc.collect()  # else the clock has the garbage of the model before in it
    cpu, clock = time.process_time(), time.perf_counter()
    model.fit(x, y, batch_size=len(x), verbose=0)
    return time.process_time() - cpu, time.perf_counter() - clock


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
    from keras_sgd_plus import SGDPlus

    workload = WORKLOADS[workload_id]
    make: Any = SGDPlus if how.startswith("SGDPlus") else keras.optimizers.SGD
    model = keras_arms.compiled(workload, make(workload.learning_rate))
    if how == "idle fit":
        model = keras_arms.idle(model)
    first_x, first_y = workload.data(4)
    gc.collect()
    base = _memory("VmRSS")
    # `workload.data` makes temporaries as large as the batch: they would be the peak.
    x, y = (_repeated(part, batch_size) for part in (first_x, first_y))
    _RESET.write_text("5")  # the kernel's code for "forget the peak so far"
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

    # Written in place, without a second array of the size of the batch.
    result = np.empty((count, *rows.shape[1:]), rows.dtype)
    result[:] = rows[:1]
    for i, row in enumerate(rows):
        result[i :: len(rows)] = row
    return result


def _memory(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024.0
