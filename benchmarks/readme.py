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
    rows = []
    for name, found in results.items():
        task, arms = TASKS[name], found["arms"]
        goal = accuracy.goals(task, arms)[-1]
        cells = [
            accuracy.to_goal(task, arms[arm], goal, epochs=False)
            for arm in accuracy.FIRST
        ]
        rows.append([f"{task.short[0]}: {task.short[1]} {goal:g}", *cells])
    table = record.markdown(["to reach", *accuracy.FIRST.values()], rows)
    seeds = len(next(iter(results.values()))["arms"]["SGDPlus"]["values"])
    foot = (
        "Seconds from the call of `fit`, compilation in them: median and range of "
        f"{seeds} seeds. `>`: not within the time that all arms had (in brackets: how "
        "many seeds were). SGD, with momentum 0.9, and Adam are Keras's; '32 steps a "
        "call' is `steps_per_execution=32`; SGDPlus has no momentum. Learning rates "
        "are tuned by one search. Goals: what the median arm of the benchmark ends "
        "with. "
    )
    here = _short([found["environment"] for found in results.values()])
    return f"{table}\n\n{foot}{here}"


def throughput() -> str:
    """Examples per second beside Keras at batch size 1, fastest too, and 32."""
    medians = speed.medians(_rows())
    shown = {  # workload -> what it is called here
        "mlp-784-128-10": "MLP 784-128-10",
        "cnn": "CNN, 28 x 28",
        "lstm-20x8": "LSTM, 20 steps",
        "transformer-32x64": "transformer, 32 tokens",
        "mlp-784-2048-2048-10": "MLP 784-2048-2048-10",
    }
    head = [
        "examples per second",
        "**SGDPlus**",
        "Keras SGD, batch 1",
        "its fastest setting",
        "SGDPlus against that",
        "Keras SGD, batch 32",
    ]
    settings = ("", ", 64 steps per execution", ", jit_compile")
    rows = []
    for workload, name in shown.items():
        ours, plain, batch = (
            medians[workload, arm] for arm in (FIT, REFERENCE, "keras SGD, batch 32")
        )
        arms = [(workload, REFERENCE + setting) for setting in settings]
        fastest = min(medians[arm] for arm in arms if arm in medians)
        cells = [f"{1e6 / us:,.0f}" for us in (ours, plain, fastest)]
        times = f"{fastest / ours:.1f} times"
        rows.append([name, *cells, times, f"{1e6 / batch:,.0f}"])
    foot = _short([record.read("speed")["environment"]])
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


def _short(environments: list[dict[str, Any]]) -> str:
    # What matters most of what measurements ran on.
    days = sorted({here["date"] for here in environments if "date" in here})
    machines = {
        f"{here['cores']} cores of {here['processor']}" for here in environments
    }
    versions = {here["packages"]["tensorflow"] for here in environments}
    words = [
        *days[:1],
        *days[1:][-1:],
        *(f"TensorFlow {version}" for version in sorted(versions)),
        *sorted(machines),
    ]
    return f"{', '.join(words)}."


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
