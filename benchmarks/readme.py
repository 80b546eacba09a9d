"""Writes the tables of both READMEs from `results/*.json`.

`python -m benchmarks readme`. A table stands between `<!-- table: name -->` and
`<!-- end -->`; what is between the two is made here, and a test fails if it is not what
the stored results give.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import accuracy, linear, order, record, robustness, speed
from benchmarks.measuring import Row
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
        f"{' to '.join(days)}, TensorFlow {here['packages']['tensorflow']}, "
        f"{here['cores']} cores of {here['processor']}."
    )
    return f"{table}\n\n{foot}"


def throughput() -> str:
    """Examples per second beside Keras at batch sizes 1 and 32, from the speed run."""
    found = record.read("speed")
    medians = speed.medians([Row(**row) for row in found["results"]["rows"]])
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
    return record.markdown(head, rows)


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


TABLES: dict[str, Callable[[], str]] = {
    "throughput": throughput,
    "first": first,
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
