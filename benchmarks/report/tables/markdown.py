"""Tables in Markdown, and the line under them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.shared.finding import Stored


def lines(
    head: list[str], rows: Iterable[list[str]], right: Iterable[int] = ()
) -> Iterator[str]:
    """The lines of a table, each row as soon as it is there.

    Args:
        head: the names of the columns.
        rows: the cells.
        right: the columns to align on the right.
    """
    yield _line(head)
    yield _line(["---:" if i in right else "---" for i in range(len(head))])
    for row in rows:
        yield _line(row)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: Iterable[list[str]], right: Iterable[int] = ()) -> str:
    """All lines of a table as one text."""
    return "\n".join(lines(head, rows, right))


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; of one value the value alone."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def yes(met: bool) -> str:
    """A verdict; a bad one catches the eye."""
    return "yes" if met else "NO"


def of_stored(
    table: Callable[[Any], str],
) -> Callable[[Iterable[Stored]], Iterator[str]]:
    """The report on a study that stores its results as one: their table."""

    def report(findings: Iterable[Stored]) -> Iterator[str]:
        for stored in findings:
            yield "\n" + table(stored.read()["results"])

    return report
