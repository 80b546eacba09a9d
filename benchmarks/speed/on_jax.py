"""Keras on JAX at batch size 1 beside SGDPlus on TensorFlow.

`python -m benchmarks on_jax [workload ...] --python=PATH`, with the interpreter of an
environment that has JAX, TensorFlow (for `tf.data`) and the version of Keras to
measure, `keras-nightly` say. Each arm is a process of its own; they take turns, an
epoch each. The figure is CPU time, which other programs on the machine change little.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.machine import ROOT

REPEATS = 5
STEPS = 1_000  # per execution of Keras on JAX
OURS = "SGDPlus"
DATASET, ARRAYS = "Keras on JAX, tf.data", "Keras on JAX, arrays"
_EXAMPLES = {  # in an epoch
    "mlp-784-128-10": 10_000,
    "lstm-20x8": 5_000,
    "cnn": 3_000,
    "transformer-32x64": 1_000,
}


@dataclass(frozen=True)
class OnJax(Finding):
    """CPU microseconds per example, medians, by arm."""

    workload: str
    times: dict[str, float]
    losses: dict[str, float]  # after the same number of epochs
    versions: dict[str, str]  # of the other environment


def measure(arguments: list[str]) -> Iterator[OnJax]:
    """Yields each workload."""
    flags = {"python": sys.executable}
    chosen = command.options("on_jax", __doc__, arguments, _EXAMPLES, **flags)
    for name in chosen.names:
        with contextlib.ExitStack() as open_arms:
            arms = {
                arm: open_arms.enter_context(_started(name, arm, chosen.python))
                for arm in (OURS, DATASET, ARRAYS)
            }
            times: dict[str, list[float]] = {arm: [] for arm in arms}
            answers: dict[str, Any] = {}
            for turn in range(REPEATS + 1):
                for arm, process in arms.items():
                    answers[arm] = _asked(process)
                    if turn:  # the first epoch compiles
                        times[arm].append(answers[arm]["microseconds"])
        yield OnJax(
            name,
            {arm: statistics.median(found) for arm, found in times.items()},
            {arm: answer["loss"] for arm, answer in answers.items()},
            answers[DATASET]["versions"],
        )


@contextlib.contextmanager
def _started(workload: str, arm: str, python: str) -> Iterator[Any]:
    ours = arm == OURS
    process: Any = subprocess.Popen(
        [sys.executable if ours else python, "-m", __name__, workload, arm],
        env={**os.environ, "KERAS_BACKEND": "tensorflow" if ours else "jax"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def _asked(process: Any) -> dict[str, Any]:
    # One more epoch.
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


def _answer(name: str, arm: str) -> None:
    # The other side: one `fit`, an epoch for each line that comes in.
    import keras

    from benchmarks.arms import keras_networks

    workload, count = WORKLOADS[name], _EXAMPLES[name]
    x, y = workload.data(count)
    model = keras_networks.build(workload)
    loss = keras_networks.loss(workload)
    own = {"learning_rate": workload.learning_rate, "momentum": workload.momentum}
    data: dict[str, Any] = {"x": x, "y": y, "batch_size": 1}
    if arm == OURS:
        from keras_sgd_plus import SGDPlus

        data["batch_size"] = 1_000
        model.compile(SGDPlus(**own, order="given"), loss)
    else:
        steps = min(STEPS, count)
        model.compile(keras.optimizers.SGD(**own), loss, steps_per_execution=steps)
        if arm == DATASET:
            import tensorflow as tf

            found = tf.data.Dataset.from_tensor_slices((x, y))
            # Without a known size of the batches Keras dispatches each step by itself.
            found = found.batch(1, drop_remainder=True)
            data = {"x": found.prefetch(tf.data.AUTOTUNE)}

    class Turns(keras.callbacks.Callback):
        """Waits for a line before each epoch, and answers at its end."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            del epoch, logs
            if not sys.stdin.readline():
                sys.exit()
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            del epoch
            microseconds = (time.process_time() - self.start) * 1e6 / count
            answer = {"microseconds": microseconds, "loss": float((logs or {})["loss"])}
            print(json.dumps(answer | {"versions": _versions()}), flush=True)

    turns = {"epochs": REPEATS + 2, "callbacks": [Turns()]}
    model.fit(**data, **turns, shuffle=False, verbose=0)


def _versions() -> dict[str, str]:
    import importlib.metadata

    import keras

    found = {"keras": keras.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["jax"] = importlib.metadata.version("jax")
    return found


if __name__ == "__main__":
    _answer(*sys.argv[1:])
