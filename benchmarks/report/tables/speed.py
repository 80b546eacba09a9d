"""Tables of `speed`, `extremes` and `quick`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

from benchmarks.arms.names import FIT, JAX, KERAS_32, LOOP, REFERENCE, TORCH
from benchmarks.report.tables import markdown
from benchmarks.shared.finding import Finding, Verdict, Verdicts
from benchmarks.speed.on_jax import ARRAYS, DATASET, OURS, STEPS, OnJax
from benchmarks.speed.on_jax import REPEATS as REPEATS_ON_JAX
from benchmarks.speed.quick import REPEATS, TARGET, Compared
from benchmarks.speed.speed import Rows, Run
from benchmarks.speed.targets import Medians, medians
from benchmarks.timing.measuring import Row


def speed(findings: Iterable[Finding]) -> Iterator[str]:
    """The rows of each workload, the targets, and all workloads beside each other."""
    for found in findings:
        if isinstance(found, Rows):
            yield of_rows(found.rows) + "\n"
        elif isinstance(found, Verdicts):
            yield of_verdicts(found.lines)
        elif isinstance(found, Run):
            yield "\n" + summary(medians(found.rows))
            yield (
                f"\nMedians of {found.repeats} passes, compilation apart; "
                f"{found.minutes:.0f} minutes."
            )


def on_jax(findings: Iterable[OnJax]) -> Iterator[str]:
    """A row per workload: the time of each arm, and in times of ours."""
    versions: dict[str, str] = {}
    rows = []
    for found in findings:
        versions |= found.versions
        ours = found.times[OURS]
        rows.append(
            [
                found.workload,
                *(f"{us:.3g}" for us in found.times.values()),
                f"{found.times[DATASET] / ours:.2f}",
            ]
        )
    head = ["workload", OURS, DATASET, ARRAYS, "tf.data, times SGDPlus"]
    yield from markdown.lines(head, rows)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield (
        "\nMicroseconds of CPU time per example of an epoch of `fit` after the first, "
        f"medians of {REPEATS_ON_JAX}; Keras on JAX at batch size 1 with "
        f"{STEPS:,} steps per execution, {named}."
    )


def extremes(findings: Iterable[Verdicts]) -> Iterator[str]:
    """The targets on first calls and memory."""
    for found in findings:
        yield of_verdicts(found.lines)


def of_rows(rows: list[Row]) -> str:
    """A row per arm of a workload; one that is missing says why."""
    head = ["workload", "arm", "µs/example", "range", "first call, s", "per call, ms"]
    said = {None: "-", True: "yes", False: "NO: row is wrong"}
    lines = []
    for row in rows:
        if row.missing:
            # Losing and missing rows stay in the table: see the policy in README.md.
            lines.append([row.workload, row.arm, f"missing: {row.missing}"])
            continue
        times, beside = row.microseconds, statistics.median(row.call_seconds)
        lines.append(
            [
                row.workload,
                row.arm,
                f"{row.median:.4g}",
                f"{min(times):.4g} to {max(times):.4g}",
                f"{row.first_seconds:.1f}",
                f"{beside * 1e3:.0f}" if beside else "-",
                f"{row.loss:.4f}",
                said[row.agrees],
            ]
        )
    return markdown.table([*head, "loss", "agrees"], lines)


def of_verdicts(lines: list[Verdict]) -> str:
    """A row per target."""
    head = ["workload", "figure", "value", "target", "met"]
    return markdown.table(head, [list(line) for line in lines])


def summary(found: Medians) -> str:
    """A row per workload, microseconds per example of the main arms."""
    columns = {
        FIT: "SGDPlus, `fit`",
        LOOP: "its loop alone",
        JAX: "JAX scan",
        TORCH: "torch",
        REFERENCE: "Keras, batch 1",
        f"{REFERENCE}, 64 steps per execution": "64 steps per execution",
        KERAS_32: "Keras, batch 32",
    }
    rows = []
    for workload in dict.fromkeys(workload for workload, _ in found):
        values = [found.get((workload, arm)) for arm in columns]
        cells = [
            "-" if v is None else f"{v:.2g}" if v < 10 else f"{v:,.0f}" for v in values
        ]
        rows.append([workload, *cells])
    return markdown.table(["workload", *columns.values()], rows)


def quick(findings: Iterable[Compared]) -> Iterator[str]:
    """A row per momentum and arm, and how many times SGDPlus is faster."""
    head = ["momentum", "optimizer", "median", "range", "updates per epoch", "loss"]
    both: list[Compared] = []

    def rows() -> Iterator[list[str]]:
        for found in findings:
            both.append(found)
            for arm in found.arms:
                low, high = min(arm.seconds) * 1e6, max(arm.seconds) * 1e6
                yield [
                    f"{found.momentum}",
                    f"{arm.name:20}",
                    f"{arm.median * 1e6:6.1f}",
                    f"{low:.1f} to {high:.1f}",
                    f"{arm.updates_per_epoch:,}",
                    f"{arm.loss:.4f}",
                ]

    yield "MLP 784-128-10, fit() in given order, microseconds per example.\n"
    yield from markdown.lines(head, rows())
    plain, momentum = both
    agree = plain.agree and momentum.agree
    yield (
        "\nSGDPlus is faster than keras SGD with batch 1 by "
        f"{plain.times_faster:.0f} times (momentum 0; target {TARGET}) and "
        f"{momentum.times_faster:.0f} times (momentum {momentum.momentum}).\n"
        f"Losses of these two agree: {'yes' if agree else 'NO: the rows are wrong'}."
    )
    yield f"Medians of {REPEATS}, compilation apart."
