"""Writes tables into texts from stored results: `python -m benchmarks readme`.

A table stands between `<!-- table: name -->` and `<!-- end -->`. This module makes the
text between the two; a test fails if a file has another text there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from benchmarks.arms.names import FIT, KERAS_32, REFERENCE
from benchmarks.quality import robustness
from benchmarks.quality.accuracy import FIRST
from benchmarks.quality.goals import goals, stored
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.rate_targets import verdicts
from benchmarks.quality.tasks import TASKS
from benchmarks.report.tables import cost, markdown, quality, rates, scaling, speed
from benchmarks.shared import machine, storage
from benchmarks.shared.machine import ROOT
from benchmarks.speed import stored as stored_speed
from benchmarks.speed.targets import medians

FILES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "recipes.md",
)
_REGION = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def first() -> str:
    """Seconds to a fixed quality, a row per task: the README's first table."""
    results = stored()
    rows = []
    for name, found in results.items():
        task, arms = TASKS[name], found["arms"]
        goal = goals(task, arms)[-1]
        cells = [quality.to_goal(task, arms[arm], goal, epochs=False) for arm in FIRST]
        rows.append([f"{task.short[0]}: {task.short[1]} {goal:g}", *cells])
    table = markdown.table(["to reach", *FIRST.values()], rows)
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
    run = storage.read("speed")["results"]
    found = medians(stored_speed.rows(run))
    names = {  # workload -> its name in this table
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
    for workload, name in names.items():
        ours, plain, batch = (found[workload, a] for a in (FIT, REFERENCE, KERAS_32))
        arms = [(workload, REFERENCE + setting) for setting in settings]
        fastest = min(found[arm] for arm in arms if arm in found)
        cells = [f"{1e6 / us:,.0f}" for us in (ours, plain, fastest)]
        times = f"{fastest / ours:.1f} times"
        rows.append([name, *cells, times, f"{1e6 / batch:,.0f}"])
    here = [run["workloads"][workload]["environment"] for workload in names]
    return f"{markdown.table(head, rows)}\n\n{_short(here)}"


def workloads() -> str:
    """Microseconds per example of every workload and the main arms."""
    run = storage.read("speed")["results"]
    rows = stored_speed.rows(run)
    passes = max(len(row.seconds) for row in rows)
    foot = f"Medians of {passes} passes, compilation apart. "
    machines = " ".join(map(machine.line, stored_speed.environments(run)))
    return f"{speed.summary(medians(rows))}\n\n{foot}{machines}"


def targets() -> str:
    """The bounds of the speed benchmark, and whether they are kept."""
    return speed.of_verdicts(stored_speed.targets(storage.read("speed")["results"]))


def port() -> str:
    """A recipe for batches of 32, carried over to one example."""
    found = robustness.stored()["port"]
    return f"{rates.of_port(found['rows'])}\n\n{_short([found['environment']])}"


def sizes() -> str:
    """Accuracy by learning rate and size of update."""
    found = robustness.stored()["sizes"]
    return f"{rates.of_sizes(found['points'])}\n\n{machine.line(found['environment'])}"


def problems() -> str:
    """Scores by learning rate, a table per problem."""
    return rates.of_problems(robustness.stored())


def costs() -> str:
    """What a bounded step at a rate that nobody chose costs against tuned SGD."""
    found = robustness.stored()
    here = [found[name]["environment"] for name in PROBLEMS]
    return f"{rates.of_costs(found)}\n\n{_short(here)}"


def untuned() -> str:
    """Time to accuracy at the rates of the documentation."""
    return quality.of_untuned(storage.results_of("untuned", otherwise={}))


def rate_targets() -> str:
    """What every rate in a range has to reach."""
    return speed.of_verdicts(verdicts(robustness.stored()))


def _whole(name: str, table: Callable[[Any], str]) -> Callable[[], str]:
    # A table of stored results, and the machine that measured them.
    return lambda: markdown.with_machine(storage.read(name), table)


def _task(name: str) -> Callable[[], str]:
    # Each task of `accuracy` has been measured by a run of its own.
    def table() -> str:
        found = stored()[name]
        text = quality.of_arms(TASKS[name], found["arms"])
        return f"{text}\n\n{machine.line(found['environment'])}"

    return table


def _short(environments: list[dict[str, Any]]) -> str:
    # The first and the last day, TensorFlow, and the machines, for the first screen.
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


TABLES: dict[str, Callable[[], str]] = {
    "throughput": throughput,
    "first": first,
    "workloads": workloads,
    "targets": targets,
    "growth": _whole("growth", scaling.of_curves),
    "embeddings": _whole("embeddings", scaling.of_vocabularies),
    "replicas": _whole("replicas", scaling.of_workers),
    **{name: _task(name) for name in TASKS},
    "sizes": sizes,
    "problems": problems,
    "costs": costs,
    "untuned": untuned,
    "rate-targets": rate_targets,
    "port": port,
    "order": _whole("order", quality.of_orders),
    "linear": _whole("linear", quality.of_problems),
    "blocks": _whole("blocks", cost.of_blocks),
}


def filled(text: str) -> str:
    """The text with every marked region made from the results."""
    return _REGION.sub(
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text
    )


def main(arguments: list[str]) -> int:
    """Rewrites the files."""
    argparse.ArgumentParser(prog="python -m benchmarks readme").parse_args(arguments)
    for path in FILES:
        path.write_text(filled(path.read_text()))
        print(f"Written: {path.relative_to(ROOT)}")
    return 0
