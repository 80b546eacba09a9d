"""The loop alone, timed against itself: variants of one training take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.arms.workloads import WORKLOADS, Workload
from benchmarks.shared import command

Pass = Callable[[], float]  # gives microseconds per example
Loop = tuple[Pass, float]  # a pass; a loss


def use_one_thread() -> None:
    """Makes times steady: XLA hands parts of a loop to a second thread now and then."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)


def chosen(
    study: str, text: str | None, arguments: list[str], examples: Mapping[str, int]
) -> Iterator[tuple[Workload, int]]:
    """The workloads that the command line names, and the examples in a pass of each.

    From then on everything runs on one thread.

    Args:
        study: its name.
        text: its docstring.
        arguments: of the command line.
        examples: by id, of all workloads that the study has.
    """
    names = command.options(study, text, arguments, examples).names
    use_one_thread()
    for name in names:
        yield WORKLOADS[name], examples[name]


def loop_of(workload: Workload, count: int, **settings: Any) -> Loop:
    """The loop of a workload on `count` examples, compiled; settings are SGDPlus's."""
    from benchmarks.arms import keras_arms  # it loads TensorFlow

    return keras_arms.timed_loop(workload, count, **settings)


def in_turn(name: str, loops: Sequence[Loop], repeats: int) -> tuple[list[float], bool]:
    """The median time of each loop, pass by pass in turn; whether the losses agree.

    Args:
        name: what is printed if they do not.
        loops: of the same training.
        repeats: passes of each.
    """
    times: list[list[float]] = [[] for _ in loops]
    for _ in range(repeats):
        for found, (run, _) in zip(times, loops, strict=True):
            found.append(run())
    losses = [loss for _, loss in loops]
    agree = max(losses) - min(losses) <= 1e-4 * abs(losses[0])
    if not agree:
        print(f"{name}: the losses differ: {losses}")
    return [statistics.median(found) for found in times], agree
