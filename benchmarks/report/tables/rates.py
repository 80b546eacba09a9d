"""Tables of `robustness`: scores by learning rate, sizes of update, recipes ported."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.quality.problems import DECADES, PROBLEMS, Problem
from benchmarks.quality.rate_targets import row_of
from benchmarks.quality.rates import PLAIN, capped, means
from benchmarks.quality.robustness import MOMENTA, RATES, SIZES
from benchmarks.quality.robustness import means as means_of_size
from benchmarks.report.tables import markdown
from benchmarks.report.tables.speed import of_verdicts
from benchmarks.shared import machine
from benchmarks.shared.finding import Finding, Stored, Verdicts

Found = dict[str, Any]
_AVERAGED = "bounded, averaged", capped(1.0, averaged=True)
_UNTUNED = (  # the name in a table, the arm, a rate that nobody chose
    *((*_AVERAGED, rate) for rate in (0.01, 0.1)),
    *((PLAIN, PLAIN, rate) for rate in (0.01, 0.1)),
)


def robustness(findings: Iterable[Finding]) -> Iterator[str]:
    """All parts that are stored, and the targets."""
    for found in findings:
        if isinstance(found, Stored):
            parts = found.read()["results"]
            yield f"\n{of_problems(parts)}"
            for name, table in (("sizes", of_sizes), ("port", of_port)):
                if name in parts:
                    (rows,) = (v for k, v in parts[name].items() if k != "environment")
                    yield f"\n{table(rows)}"
                    yield f"\n{machine.line(parts[name]['environment'])}"
        elif isinstance(found, Verdicts):
            yield f"\n{of_verdicts(found.lines)}"


def of_problems(parts: dict[str, Found]) -> str:
    """A table per problem, in order, and the machine of each."""
    texts = []
    for name, problem in PROBLEMS.items():
        if name in parts:
            texts.append(f"{problem.text}:\n\n{of_arms(problem, parts[name])}")
    measured = [parts[name] for name in PROBLEMS if name in parts]
    line = machine.line(*(part["environment"] for part in measured))
    return "\n\n".join([*texts, line])


def of_arms(problem: Problem, found: Found) -> str:
    """A row per momentum and arm: the score at each decade, and at the best rate."""
    head = ["momentum", "arm", *(f"{rate:g}" for rate in DECADES), "at its best rate"]
    head += [
        "rate",
        *([] if problem.is_regression else ["NLL", "ECE"]),
        "near the best",
    ]
    rows = []
    for row in found["arms"]:
        here = means(row)
        rate = best_rate(problem, row)
        at = row["rates"].index(rate)
        best = [run[at] for run in row["test"]]
        calibration = [
            f"{statistics.mean(run[at] for run in row[score]):.3f}"
            for score in ("nll", "ece")
            if score in row
        ]
        rows.append(
            [
                f"{row['momentum']:g}",
                row["arm"],
                *(_score(problem, here[rate]) for rate in DECADES),
                markdown.spread(best, 2 if problem.is_regression else 3),
                f"{rate:g}",
                *calibration,
                f"{good_rates(problem, found, row)} of {len(DECADES)}",
            ]
        )
    return markdown.table(head, rows)


def of_costs(parts: dict[str, Found]) -> str:
    """A row per problem: tuned SGD, and arms at rates that nobody chose."""
    head = ["task", "tuned plain SGD", "rate, momentum"]
    head += [f"{arm}, {rate:g}" for arm, _, rate in _UNTUNED]
    rows = []
    for name, problem in PROBLEMS.items():
        if name not in parts:
            continue
        tuned = tuned_plain(problem, parts[name])
        at = tuned["rates"].index(best_rate(problem, tuned))
        digits = 2 if problem.is_regression else 3
        cells = [problem.text, markdown.spread([r[at] for r in tuned["test"]], digits)]
        cells.append(f"{tuned['rates'][at]:g}, {tuned['momentum']:g}")
        for _, arm, rate in _UNTUNED:
            here = means(row_of(parts[name], arm, 0.0))
            cells.append(_score(problem, here[rate]))
        rows.append(cells)
    return markdown.table(head, rows)


def tuned_plain(problem: Problem, found: Found) -> Found:
    """The row of plain SGD whose momentum is best on the validation part."""
    rows = {
        means(row, "validation")[best_rate(problem, row)]: row
        for row in (row_of(found, PLAIN, momentum) for momentum in MOMENTA)
    }
    return rows[problem.best_of(rows)]


def best_rate(problem: Problem, row: Found) -> float:
    """The rate with the best mean score on the validation part."""
    here = {r: v for r, v in means(row, "validation").items() if not math.isnan(v)}
    return problem.best_of(here, key=lambda rate: here[rate])


def good_rates(problem: Problem, found: Found, row: Found) -> int:
    """At how many decades the test score is near that of the best arm at its best."""
    ends = [means(each)[best_rate(problem, each)] for each in found["arms"]]
    best, here = problem.best_of(ends), means(row)
    return sum(abs(here[rate] - best) <= problem.near for rate in DECADES)


def _score(problem: Problem, value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.2f}" if problem.is_regression else f"{value:.3f}"


def of_sizes(points: list[dict[str, Any]]) -> str:
    """A row per momentum and size, a column per learning rate; means over seeds."""
    head = ["momentum", "per update", *(f"{rate:g}" for rate in RATES), "within 0.02"]
    rows = []
    for momentum in MOMENTA:
        for size in SIZES:
            here = means_of_size(points, size, momentum)
            top = max(here.values())
            cells = [f"{here[r]:.3f}" for r in RATES]
            # Bold in all columns that are the best as printed, not only in one.
            cells = [f"**{c}**" if c == f"{top:.3f}" else c for c in cells]
            near = sum(mean >= top - 0.02 for mean in here.values())
            near_of = f"{near} of {len(RATES)}"
            rows.append([f"{momentum:g}", str(size), *cells, near_of])
    return markdown.table(head, rows)


def of_port(rows: list[dict[str, Any]]) -> str:
    """A row per way of carrying a recipe over."""
    head = ["what is done", "learning rate", "momentum", "test accuracy"]
    cells = [
        [
            row["name"],
            f"{row['rate']:.2g}",
            f"{row['momentum']:.4g}",
            markdown.spread(row["values"], 3),
        ]
        for row in rows
    ]
    return markdown.table(head, cells)
