"""Tables of `ablation`, `profile`, `blocks`, `threshold`, and of options."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from benchmarks.cost import ablation as forms
from benchmarks.cost import blocks as block_study
from benchmarks.cost import options
from benchmarks.cost.blocks import LENGTHS, Blocks
from benchmarks.cost.profile import Profile
from benchmarks.cost.threshold import SETTINGS, Order, Thresholds
from benchmarks.report.tables import markdown
from benchmarks.shared.finding import Finding

_SHOWN = 12  # operations of a profile


def ablation(findings: Iterable[forms.Form]) -> Iterator[str]:
    """A row per form."""
    head = ["form", "workload", "without it", "with all", "times faster"]
    rows = (
        [
            form.name,
            form.workload,
            f"{form.without:.3g}",
            f"{form.with_all:.3g}",
            f"{form.without / form.with_all:.2f}",
        ]
        for form in findings
    )
    yield from markdown.lines(head, rows)
    yield _foot(forms.REPEATS)


def nonfinite(findings: Iterable[options.Options]) -> Iterator[str]:
    """A row per workload: each setting's time, and that in times of the first."""
    rest = iter(findings)
    first = next(rest)
    ratios = [f"{name}, times" for name in first.ratios]
    rows = (
        [
            found.workload,
            *(f"{us:.3g}" for us in found.times.values()),
            *(f"{ratio:.2f}" for ratio in found.ratios.values()),
            markdown.yes(found.met),
        ]
        for found in itertools.chain([first], rest)
    )
    yield from markdown.lines(["workload", *first.times, *ratios, "met"], rows)
    yield _foot(options.REPEATS)


clipping = capped = nonfinite  # the same table


def blocks(findings: Iterable[Blocks]) -> Iterator[str]:
    """A row per shape: the time of each length, and how many times faster ours is."""
    lengths = [f"{k} examples" for k in LENGTHS]
    head = ["kernel", "momentum", "one by one", *lengths, "ours", "times faster"]
    rows = (
        [
            found.shape,
            f"{found.momentum:g}",
            *(f"{us:.3g}" for us in found.times.values()),
            f"{found.ours}",
            f"{found.times[1] / found.times[found.ours]:.2f}",
        ]
        for found in findings
    )
    yield from markdown.lines(head, rows)
    yield _foot(block_study.REPEATS)


def _foot(repeats: int) -> str:
    return "\n" + markdown.foot(
        f"Microseconds per example, the loop alone, medians of {repeats}."
    )


def profile(findings: Iterable[Profile]) -> Iterator[str]:
    """The largest operations of each workload, and the rest as one row."""
    for found in findings:
        parts = found.operations
        largest = sorted(parts, key=lambda name: -parts[name])[:_SHOWN]
        rest = sum(us for name, us in parts.items() if name not in largest)
        shown = {**{name: parts[name] for name in largest}, "all others": rest}
        rows = [[name, f"{us:.2f}"] for name, us in shown.items()]
        yield f"{found.workload}: {found.loop:.4g} us/example\n"
        yield markdown.table(["operation", "us/example"], rows) + "\n"


def threshold(findings: Iterable[Finding]) -> Iterator[str]:
    """A row per model and a column per setting; then a row per batch."""
    rest = iter(findings)
    loops = next(rest)
    if isinstance(loops, Thresholds):
        yield "\nMicroseconds per example, the loop alone, by threshold in bytes:\n"
        rows = [
            [model, *(f"{us:.3g}" for us in times)]
            for model, times in loops.times.items()
        ]
        yield markdown.table(["model", *SETTINGS], rows)
    yield "\nNanoseconds per example for the order of a batch:\n"
    orders = (
        [f"{o.batch_size:,}", f"{o.without_xla:.0f}", f"{o.with_xla:.0f}"]
        for o in rest
        if isinstance(o, Order)
    )
    yield from markdown.lines(["batch", "without XLA", "with XLA"], orders)
