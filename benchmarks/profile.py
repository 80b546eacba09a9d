"""Where the time of the loop goes: what XLA's operations take per example.

`python -m benchmarks profile id [id ...]`, with workloads of `speed`. Times are from
TensorFlow's profiler, on a run with one thread, so that they can be added. It makes
the many short ones longer than they are: it is the shares that count.
"""

from __future__ import annotations

import collections
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROFILED, _SHOWN = 256, 12
_DETAIL = 3  # the profiler's level at which XLA's operations appear


def _traced(run: Callable[[], Any]) -> collections.Counter[str]:
    """Picoseconds by name of operation, without the number at its end."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # type: ignore[import]

    total: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=_DETAIL)
        with tf.profiler.experimental.Profile(folder, options):
            run()
        for path in Path(folder).rglob("*.xplane.pb"):
            space = xplane_pb2.XSpace()
            space.ParseFromString(path.read_bytes())
            for plane in space.planes:
                for line in plane.lines:
                    for event in line.events:
                        name = plane.event_metadata[event.metadata_id].name
                        total[name.split(".")[0]] += event.duration_ps
    return total


def _is_operation(name: str) -> bool:
    # Not what encloses operations: C++ and Python functions, loops, ends of regions.
    encloses = name in ("step_fn", "while", "call", "BlockUntilReady")
    return not encloses and not re.search(r"[: /$]|^TFE_|^Eager", name)


def show(workload_id: str) -> None:
    """Prints the loop's time and its largest parts, microseconds per example."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    from benchmarks.arms import keras_arms
    from benchmarks.workloads import WORKLOADS

    run, _ = keras_arms.timed_loop(WORKLOADS[workload_id], _PROFILED)
    print(f"{workload_id}: {statistics.median(run() for _ in range(9)):.4g} us/example")
    parts = _traced(run)
    names = [n for n in parts if _is_operation(n)]
    largest = sorted(names, key=lambda n: -parts[n])[:_SHOWN]
    print("\n| operation | us/example |\n| --- | --- |")
    for name in largest:
        print(f"| {name} | {parts[name] / 1e6 / _PROFILED:.2f} |")
    rest = sum(parts[n] for n in names if n not in largest)
    print(f"| all others | {rest / 1e6 / _PROFILED:.2f} |\n")


def main(arguments: list[str] | None = None) -> int:
    """Prints a table per workload, each from a process of its own."""
    if not arguments:
        raise SystemExit("usage: python -m benchmarks profile id [id ...]")
    for workload_id in arguments:
        command = [sys.executable, "-m", "benchmarks.profile", workload_id]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run(
            command, check=True, env=environment, cwd=Path(__file__).parent.parent
        )
    return 0


if __name__ == "__main__":
    show(sys.argv[1])
