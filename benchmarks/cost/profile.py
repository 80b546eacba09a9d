"""A profile of the loop: the time per example of each of XLA's operations.

`python -m benchmarks profile [id ...]`, with workloads of `speed`. TensorFlow's
profiler gives the times, on one thread, so that they can be added. It makes short
operations longer than they are: read the shares.
"""

from __future__ import annotations

import collections
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.cost import loops
from benchmarks.shared import command
from benchmarks.shared.finding import Finding
from benchmarks.shared.processes import in_process

_PROFILED = 256  # examples
_DETAIL = 3  # the profiler's level at which XLA's operations appear


@dataclass(frozen=True)
class Profile(Finding):
    """Microseconds per example of a loop, and of each of its operations."""

    workload: str
    loop: float
    operations: dict[str, float]


def measure(arguments: list[str]) -> Iterator[Profile]:
    """Yields each workload, from a process of its own."""
    for workload_id in command.options("profile", __doc__, arguments, WORKLOADS).names:
        loop, operations = in_process(profiled, workload_id)
        yield Profile(workload_id, loop, operations)


def profiled(workload_id: str) -> tuple[float, dict[str, float]]:
    """The loop's time and that of its operations, microseconds per example."""
    loops.use_one_thread()
    run, _ = loops.loop_of(WORKLOADS[workload_id], _PROFILED)
    loop = statistics.median(run() for _ in range(9))
    found = {n: p / 1e6 / _PROFILED for n, p in _traced(run).items()}
    return loop, {name: us for name, us in found.items() if _is_operation(name)}


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
                        # XLA numbers operations of one kind: add.1, add.2
                        total[name.split(".")[0]] += event.duration_ps
    return total


def _is_operation(name: str) -> bool:
    # Functions of C++ and Python, loops and ends of regions enclose operations: their
    # times would count twice.
    encloses = name in ("step_fn", "while", "call", "BlockUntilReady")
    return not encloses and not re.search(r"[: /$]|^TFE_|^Eager", name)
