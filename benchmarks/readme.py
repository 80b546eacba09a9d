"""Writes the tables of both READMEs from `results/*.json`.

`python -m benchmarks readme`. A table stands between `<!-- table: name -->` and
`<!-- end -->`; what is between the two is made here, and a test fails if it is not what
the stored results give.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    embeddings,
    extremes,
    growth,
    linear,
    order,
    record,
    replicas,
    robustness,
    speed,
)
from benchmarks.measuring import Point, Row
from benchmarks.targets import FIT, REFERENCE
from benchmarks.tasks import TASKS

ROOT = record.RESULTS.parents[1]
FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
_REGION = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def first() -> str:
    """Seconds to a fixed quality, a row per task: the README's first table."""
    results = accuracy.stored()
    head = ["to reach", *accuracy.FIRST]
    rows = []
    for name, found in results.items():
        task, arms = TASKS[name], found["arms"]
        goal = f"{task.unit} {task.goals[-1]:g}: {task.text}"
        cells = [accuracy.to_goal(task, arms[arm], -1) for arm in accuracy.FIRST]
        rows.append([goal, *cells])
    table = record.markdown(head, rows)
    here = next(iter(results.values()))["environment"]
    days = sorted({found["environment"]["date"] for found in results.values()})
    seeds = len(next(iter(results.values()))["arms"]["SGDPlus"]["values"])
    foot = (
        "Seconds from the call of `fit`, compilation included, and epochs in brackets; "
        f"means ± standard deviations of {seeds} seeds, or how many of them get there "
        "in all the time that they had. Learning rates are tuned by the same search. "
    )
    return f"{table}\n\n{foot}{_short(here, days)}"


def throughput() -> str:
    """Examples per second beside Keras at batch sizes 1 and 32, from the speed run."""
    medians = speed.medians(_rows())
    arms = (REFERENCE, FIT, "keras SGD, batch 32")
    shown = {  # workload -> what it is called here
        "mlp-784-128-10": "MLP 784-128-10",
        "cnn": "CNN, 28 x 28",
        "lstm-20x8": "LSTM, 20 steps",
        "transformer-32x64": "transformer, 32 tokens",
        "mlp-784-2048-2048-10": "MLP 784-2048-2048-10",
    }
    head = [
        "examples per second",
        "Keras SGD, batch 1",
        "**SGDPlus**",
        "Keras SGD, batch 32",
        "SGDPlus against batch 1",
    ]
    rows = []
    for workload, name in shown.items():
        slow, ours, batch = (medians[workload, arm] for arm in arms)
        cells = [f"{1e6 / us:,.0f}" for us in (slow, ours, batch)]
        rows.append([name, *cells, f"{slow / ours:.0f} times"])
    here = record.read("speed")["environment"]
    foot = _short(here, [here.get('date', 'undated')])
    return f"{record.markdown(head, rows)}\n\n{foot}"


def workloads() -> str:
    """Microseconds per example of every workload and the main arms."""
    rows = _rows()
    passes = max(len(row.microseconds) for row in rows)
    foot = f"Medians of {passes} passes, compilation apart. "
    environment = record.read("speed")["environment"]
    return f"{speed.summary(speed.medians(rows))}\n\n{foot}{record.line(environment)}"


def targets() -> str:
    """The bounds of the speed benchmark, and whether they are kept."""
    return extremes.table(record.read("speed")["results"]["targets"])


def curves() -> str:
    """How time and memory grow: a table per curve."""
    found = record.read("growth")
    points = [Point(**point) for point in found["results"]]
    names = dict.fromkeys(point.curve for point in points)
    tables = [growth.table([p for p in points if p.curve == name]) for name in names]
    return "\n\n".join([*tables, record.line(found["environment"])])


def vocabularies() -> str:
    """Momentum on tables of up to a million rows, and the bounds on it."""
    found = record.read("embeddings")
    table = growth.table([Point(**point) for point in found["results"]])
    lines = "\n".join(f"- {line}" for line in embeddings.verdicts(found["results"]))
    return f"{table}\n\n{lines}\n\n{record.line(found['environment'])}"


def workers() -> str:
    """Local SGD on 1, 2 and 4 processes, and on paper for up to 64."""
    found = record.read("replicas")
    return f"{replicas.table(found['results'])}\n\n{record.line(found['environment'])}"


def quality(name: str) -> Callable[[], str]:
    """All arms of one task."""

    def make() -> str:
        found = accuracy.stored()[name]
        table = accuracy.table(TASKS[name], found["arms"])
        return f"{table}\n\n{record.line(found['environment'])}"

    return make


def rates() -> str:
    """Test accuracy against learning rate and size of update."""
    found = record.read("robustness")
    table = robustness.sweep_table(found["results"]["sweep"])
    return f"{table}\n\n{record.line(found['environment'])}"


def port() -> str:
    """A recipe for batches of 32, carried over to one example."""
    return robustness.port_table(record.read("robustness")["results"]["port"])


def orders() -> str:
    """Sorted by class against shuffled."""
    found = record.read("order")
    return f"{order.table(found['results'])}\n\n{record.line(found['environment'])}"


def lines() -> str:
    """SGDPlus beside scikit-learn on linear models."""
    found = record.read("linear")
    return f"{linear.table(found['results'])}\n\n{record.line(found['environment'])}"


def _short(here: dict[str, Any], days: list[str]) -> str:
    # What matters most of what a measurement ran on.
    return (
        f"{' to '.join(days)}, TensorFlow {here['packages']['tensorflow']}, "
        f"{here['cores']} cores of {here['processor']}."
    )


def _rows() -> list[Row]:
    # Of the speed run.
    return [Row(**row) for row in record.read("speed")["results"]["rows"]]


TABLES: dict[str, Callable[[], str]] = {
    "throughput": throughput,
    "first": first,
    "workloads": workloads,
    "targets": targets,
    "growth": curves,
    "embeddings": vocabularies,
    "replicas": workers,
    **{name: quality(name) for name in TASKS},
    "rates": rates,
    "port": port,
    "order": orders,
    "linear": lines,
}


def filled(text: str) -> str:
    """The text with every marked region made from the results."""
    return _REGION.sub(
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text
    )


def main(arguments: list[str] | None = None) -> int:
    """Rewrites both files."""
    del arguments
    for path in FILES:
        path.write_text(filled(path.read_text()))
        print(f"Written: {Path(path).relative_to(ROOT)}")
    return 0
