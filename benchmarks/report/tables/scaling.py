"""Tables of `growth`, `embeddings` and `replicas`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.report.tables import markdown
from benchmarks.scaling.embeddings import (
    BOUNDS,
    REPEATS,
    VOCABULARIES,
    Vocabularies,
    grown,
)
from benchmarks.scaling.growth import Curve
from benchmarks.scaling.replicas import FAR, on_paper
from benchmarks.shared.finding import Finding
from benchmarks.timing.measuring import Point


def growth(findings: Iterable[Curve]) -> Iterator[str]:
    """A table per curve."""
    for found in findings:
        yield of_points(found.points) + "\n"


def of_points(points: list[Point]) -> str:
    """One curve: a row per place, a column per arm."""
    arms = list(dict.fromkeys(point.arm for point in points))
    units = {point.arm: point.unit for point in points}
    heads = [f"{arm}{units[arm] and f', {units[arm]}'}" for arm in arms]
    rows = []
    for at in dict.fromkeys(point.at for point in points):
        cells = {p.arm: f"{p.value:.4g}" for p in points if p.at == at}
        rows.append([f"{at:,}", *(cells.get(arm, "-") for arm in arms)])
    return markdown.table([points[0].curve, *heads], rows)


def embeddings(findings: Iterable[Finding]) -> Iterator[str]:
    """A row per vocabulary, and the bounds."""
    for found in findings:
        if isinstance(found, Vocabularies):
            yield of_vocabularies(found.points)
            yield f"\nMedians of {REPEATS} passes."


def of_vocabularies(points: list[dict[str, Any]]) -> str:
    """A row per vocabulary; per bound, how much more an example takes, met or not."""
    smallest, lines = f"{VOCABULARIES[0]:,}", []
    for size, more in grown(points).items():
        verdict = "met" if more <= BOUNDS[size] else "MISSED"
        start = f"{size:,} rows take {more:.1f} µs/example more than {smallest}"
        lines.append(f"- {start} (bound: {BOUNDS[size]:g}; {verdict})")
    return "\n".join([of_points([Point(**point) for point in points]), "", *lines])


def of_workers(results: dict[str, Any]) -> str:
    """A row per number of workers and arm; an epoch on workers with a core each."""
    head = ["workers", "arm", "s/epoch", "test loss after 1, 4, 12 epochs", "accuracy"]
    rows = []
    for num_workers, found in results.items():
        for name, arm in found["arms"].items():
            seconds = f"{statistics.median(arm['seconds']):.3f}"
            losses = ", ".join(f"{arm['loss'][i]:.3f}" for i in (0, 3, 11))
            accuracy = f"{arm['accuracy'][-1]:.3f}"
            rows.append([num_workers, name, seconds, losses, accuracy])
    measured = markdown.table(head, rows, right=(0, 2, 4))
    head = ["workers, a core each", *map(str, FAR)]
    rows = [
        [
            f"s/epoch, batch {batch}",
            *(f"{on_paper(results, batch, r):.3f}" for r in FAR),
        ]
        for batch in (500, 2_000)
    ]
    return f"{measured}\n\n{markdown.table(head, rows, right=range(1, len(head)))}"


replicas = markdown.of_stored(of_workers)
