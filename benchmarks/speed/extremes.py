"""First calls and peaks of memory, which the time of a pass does not show.

`python -m benchmarks extremes`; `speed` has these targets, too, unless it is for
some workloads only. Each figure comes from a new process.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.arms.workloads import WORKLOADS
from benchmarks.shared import command
from benchmarks.shared.finding import Verdict, Verdicts
from benchmarks.shared.processes import WITHOUT_FLAGS, in_process
from benchmarks.timing.once import MIB, first_calls, memory_can_be_measured, peak_memory

_FIRST_CALL = 1.5  # bound on the seconds of ours, in those of Keras
_MEMORY = 1.2  # bound on memory beside two copies of the batch, in that of a small one
_LARGE, _SMALL = 65_536, 64  # examples
_OTHERS = ("idle fit", "keras fit")  # beside ours, for comparison
_MODELS = ("mlp-784-128-10", "cnn", "lstm-20x8", "transformer-32x64")


def measure(arguments: list[str]) -> Iterator[Verdicts]:
    """Yields the targets of this module, all at once."""
    command.options("extremes", __doc__, arguments)
    yield Verdicts(verdicts(quick=False))


def verdicts(quick: bool) -> list[Verdict]:
    """The targets on first calls and memory."""
    lines = [_first_call(workload_id, 2 if quick else 7) for workload_id in _MODELS]
    if not memory_can_be_measured():
        text = "peak memory at batch 65,536: missing, needs Linux's /proc"
        return [*lines, ("cnn", text, "no figure", "-", "no")]
    hows = ("SGDPlus fit", "SGDPlus step")
    return lines + _memories(hows if quick else (*hows, *_OTHERS))


def _first_call(workload_id: str, repeats: int) -> Verdict:
    times = in_process(first_calls, workload_id, repeats, environment=WITHOUT_FLAGS)
    ours, theirs = (statistics.median(v) for v in times.values())
    text = f"first call: SGDPlus {ours:.2f} s / keras jit_compile {theirs:.2f} s"
    met = "yes" if ours <= _FIRST_CALL * theirs else "NO"
    return (workload_id, text, f"{ours / theirs:.3g}x", f"<= {_FIRST_CALL:g}x", met)


def _memories(hows: Sequence[str]) -> list[Verdict]:
    small = _peak(_SMALL, "SGDPlus fit")
    x, y = WORKLOADS["cnn"].data(4)
    batch_bytes = (x.nbytes + y.nbytes) / 4 * _LARGE
    # Keras holds the arrays and their tensors; the rest must not grow with the batch.
    bound = 2 * batch_bytes + _MEMORY * small
    lines = []
    for how in hows:
        peak = _peak(_LARGE, how)
        met = "yes" if peak <= bound else "NO"
        if how in _OTHERS:
            met = "-"
        text = f"peak memory at batch {_LARGE:,}, {how}"
        figures = f"{peak / MIB:.0f} MiB", f"<= {bound / MIB:.0f} MiB"
        lines.append(("cnn", text, *figures, met))
    return lines


def _peak(batch_size: int, how: str) -> float:
    return in_process(peak_memory, "cnn", batch_size, how, environment=WITHOUT_FLAGS)
