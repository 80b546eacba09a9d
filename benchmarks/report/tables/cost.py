"""Tables of the studies of cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from benchmarks.cost import ablation as forms
from benchmarks.cost import applications as application_study
from benchmarks.cost import blocks as block_study
from benchmarks.cost import callbacks, options
from benchmarks.cost import firstcall as calls
from benchmarks.cost import front as front_study
from benchmarks.cost import overflow as overflow_study
from benchmarks.cost.applications import Application
from benchmarks.cost.blocks import LENGTHS, Blocks
from benchmarks.cost.firstcall import FirstCalls, Restarts
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
    yield from _options(findings)
    yield _foot(options.REPEATS)


def averages(findings: Iterable[options.Options]) -> Iterator[str]:
    """The same, of epochs of `fit`."""
    yield from _options(findings)
    study = callbacks.STUDIES["averages"]
    epochs = (study.fits - 1) * (study.epochs - 1)
    yield (
        "\nMicroseconds of CPU time per example of an epoch of `fit` in batches of "
        f"{callbacks.BATCH_SIZE:,}, medians of {epochs}."
    )


def _options(findings: Iterable[options.Options]) -> Iterator[str]:
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


clipping = capped = nonfinite  # the same table


def front(findings: Iterable[front_study.Front]) -> Iterator[str]:
    """A row per layer."""
    yield from _options(findings)
    yield (
        "\nMicroseconds per example of `fit` in batches of 1,000, medians of "
        f"{front_study.REPEATS}."
    )


def overflow(findings: Iterable[overflow_study.Overflow]) -> Iterator[str]:
    """A row per workload: the loop without and with it, the ratio, its interval."""
    rows = (
        [
            found.workload,
            f"{found.without:.3g}",
            f"{found.with_it:.3g}",
            f"{found.ratio:.3f}",
            "{:.3f} to {:.3f}".format(*found.interval),
            markdown.yes(not found.missed),
        ]
        for found in findings
    )
    head = ["workload", "whole blocks", "checked", "times", "interval", "met"]
    yield from markdown.lines(head, rows)
    yield (
        "\nMicroseconds per example, the loop alone, medians of "
        f"{overflow_study.REPEATS} turns; times is the median of their ratios, and the "
        "interval has that median 19 times of 20."
    )


def records(findings: Iterable[callbacks.Records]) -> Iterator[str]:
    """A row per workload: epochs with each log, and what the first two cost."""
    head = ["workload", *callbacks.ARMS, "loss, more", "norm, times", "met"]
    rows = (
        [
            found.workload,
            *(f"{us:.3g}" for us in found.times.values()),
            f"{found.more['loss']:.3f}",
            f"{1 + found.more['gradient norm'] / found.times['no log']:.2f}",
            markdown.yes(found.met),
        ]
        for found in findings
    )
    yield from markdown.lines(head, rows)
    yield (
        "\nMicroseconds of CPU time per example of an epoch of `fit` in batches of "
        f"{callbacks.BATCH_SIZE:,}; the last columns are medians of "
        f"{callbacks.STUDIES['records'].fits - 1} pairs."
    )


def blocks(findings: Iterable[Blocks]) -> Iterator[str]:
    """A row per shape: the time of each length, and how many times faster ours is."""
    head = [
        *("kernel", "momentum", "one by one"),
        *(f"{length} examples" for length in LENGTHS),
        *("ours", "times faster", "C, 64 examples"),
    ]
    yield from markdown.lines(head, map(_block_row, findings))
    yield _foot(block_study.REPEATS)


def _block_row(found: Blocks) -> list[str]:
    """The cells of one shape."""
    native = "" if found.native is None else f"{found.native:.3g}"
    return [
        found.shape,
        f"{found.momentum:g}",
        *(f"{us:.3g}" for us in found.times.values()),
        f"{found.ours}",
        f"{found.times['1'] / found.times[str(found.ours)]:.2f}",
        native,
    ]


def firstcall(findings: Iterable[Finding]) -> Iterator[str]:
    """Both tables, as the findings come."""
    for found in findings:
        if isinstance(found, FirstCalls):
            yield from first_calls([found])
        elif isinstance(found, Restarts):
            yield from restarts([found])


def restarts(findings: Iterable[Restarts]) -> Iterator[str]:
    """A row per workload: seconds of each process, and what was spared."""
    rows = (
        [
            found.workload,
            *(f"{found.cpu[a]:.2f} / {found.clock[a]:.2f}" for a in calls.PROCESSES),
            f"{found.cpu[calls.SECOND] / found.cpu[calls.FIRST]:.2f}",
            f"{100 * found.spared:.0f} %",
            "yes" if found.same_bits else "NO",
        ]
        for found in findings
    )
    ratios = ["second / first", "of XLA spared", "same bits"]
    yield from markdown.lines(["workload", *calls.PROCESSES, *ratios], rows)
    yield (
        "\nSeconds of the first fit of a process on a batch of 64, processor / clock; "
        f"ratios of the processor's; medians of {calls.RESTARTS}."
    )


def first_calls(findings: Iterable[FirstCalls]) -> Iterator[str]:
    """A row per workload: each arm's seconds, and ours in those of other arms."""
    ratios = [f"times {name}" for name in (calls.SINGLE, calls.JIT)]
    rows = (
        [
            found.workload,
            *(f"{found.cpu[a]:.2f} / {found.clock[a]:.2f}" for a in calls.ARMS),
            f"{found.cpu[calls.OURS] / found.cpu[calls.SINGLE]:.2f}",
            f"{found.cpu[calls.OURS] / found.cpu[calls.JIT]:.2f}",
        ]
        for found in findings
    )
    yield from markdown.lines(["workload", *calls.ARMS, *ratios], rows)
    yield (
        "\nSeconds of the first fit on a batch of 64, processor / clock; ratios of the "
        f"processor's; medians of {calls.REPEATS}."
    )


def _foot(repeats: int) -> str:
    return f"\nMicroseconds per example, the loop alone, medians of {repeats}."


def profile(findings: Iterable[Profile]) -> Iterator[str]:
    """The largest operations of each workload, and the rest as one row."""
    for found in findings:
        parts = found.operations
        largest = sorted(parts, key=lambda name: -parts[name])[:_SHOWN]
        rest = sum(us for name, us in parts.items() if name not in largest)
        shown = {**{name: parts[name] for name in largest}, "all others": rest}
        rows = [[name, f"{us:.2f}"] for name, us in shown.items()]
        yield f"{found.workload}: {found.loop:.4g} µs/example\n"
        yield markdown.table(["operation", "µs/example"], rows) + "\n"


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


def applications(findings: Iterable[Application]) -> Iterator[str]:
    """A row per network."""
    head = [
        "network",
        "trained",
        "compiled",
        "not compiled",
        "Keras, batch 32",
        "compiled, times faster",
        "in CPU time",
        "times Keras",
        "in CPU time",
        "first batches, s",
    ]
    rows = (
        [
            found.network,
            "head" if found.frozen else "all",
            *(f"{milliseconds:.3g}" for milliseconds in found.times.values()),
            *(
                f"{kind[a] / kind[b]:.2f}"
                for a, b in (("not compiled", "compiled"), ("compiled", "keras"))
                for kind in (found.times, found.work)
            ),
            ", ".join(f"{seconds:.1f}" for seconds in found.firsts.values()),
        ]
        for found in findings
    )
    yield from markdown.lines(head, rows)
    yield (
        "\nMilliseconds per example, `train_on_batch` on 32 images, medians of "
        f"{application_study.REPEATS}; first batches in the order of the arms."
    )
