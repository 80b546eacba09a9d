"""The tables of the texts, each made from stored results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.arms.names import FIT, KERAS_32, REFERENCE
from benchmarks.cost.ablation import Form
from benchmarks.cost.applications import Application
from benchmarks.cost.blocks import Blocks
from benchmarks.cost.callbacks import Records
from benchmarks.cost.firstcall import FirstCalls, Restarts
from benchmarks.cost.front import Front
from benchmarks.cost.options import Options
from benchmarks.cost.overflow import Overflow
from benchmarks.cost.profile import Profile
from benchmarks.cost.threshold import Order, Thresholds
from benchmarks.equality.equality import Model
from benchmarks.quality import robustness
from benchmarks.quality.accuracy import AVERAGED, FIRST
from benchmarks.quality.goals import final, goals, stored
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.rate_targets import verdicts
from benchmarks.quality.search import stored as stored_search
from benchmarks.quality.tasks import TASKS
from benchmarks.report.tables import (
    cost,
    equality,
    markdown,
    quality,
    rates,
    scaling,
    speed,
)
from benchmarks.scaling.growth import Curve
from benchmarks.shared import kept, machine, storage
from benchmarks.shared.finding import Finding
from benchmarks.speed import stored as stored_speed
from benchmarks.speed.on_jax import OnJax
from benchmarks.speed.quick import Compared
from benchmarks.speed.targets import medians

_PEERS = ("jax", "torch", "scikit-learn")


def _with_machines(
    text: str, *environments: dict[str, Any], peers: Iterable[str] = ()
) -> str:
    # A table, and under it a line about the machines that measured it.
    return f"{text}\n\n{machine.line(*environments, peers=peers)}"


def first() -> str:
    """Seconds to a fixed quality, a row per task: the README's table."""
    results = stored()
    rows = []
    for name, found in results.items():
        task, arms = TASKS[name], found["arms"]
        goal = goals(task, arms)[-1]
        cells = [quality.median_to_goal(task, arms[arm], goal) for arm in FIRST]
        rows.append([f"{task.short[0]}: {task.short[1]} {goal:g}", *cells])
    table = markdown.table(["until", *FIRST.values()], rows)
    return _with_machines(table, *(each["environment"] for each in results.values()))


def beside_adam() -> str:
    """The arms of `first`, and averages, on the transformer: a task for Adam."""
    task, found = TASKS["text"], stored()["text"]
    first_arm, *others = FIRST.items()
    arms = dict([first_arm, (AVERAGED, "SGDPlus, `AverageWeights`"), *others])
    *_, goal = goals(task, found["arms"])
    rows = [
        [
            name,
            f"{found['arms'][arm]['learning_rate']:g}",
            markdown.spread(final(task, found["arms"][arm]), 2),
            quality.median_to_goal(task, found["arms"][arm], goal),
        ]
        for arm, name in arms.items()
    ]
    head = ["optimizer", "learning rate", task.unit, f"until {goal:g} nats"]
    return _with_machines(markdown.table(head, rows), found["environment"])


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
    return _with_machines(markdown.table(head, rows), *here)


def workloads() -> str:
    """Microseconds per example of every workload and the main arms."""
    run = storage.read("speed")["results"]
    rows = stored_speed.rows(run)
    passes = max(len(row.seconds) for row in rows)
    foot = f"Medians of {passes} passes, compilation apart."
    text = f"{speed.summary(medians(rows))}\n\n{foot}"
    return _with_machines(text, *stored_speed.environments(run), peers=_PEERS)


def targets() -> str:
    """The bounds of the speed benchmark, and whether they are kept."""
    return speed.of_verdicts(stored_speed.targets(storage.read("speed")["results"]))


def port() -> str:
    """A recipe for batches of 32, carried over to one example."""
    found = robustness.stored()["port"]
    return _with_machines(rates.of_port(found["rows"]), found["environment"])


def sizes() -> str:
    """Accuracy by learning rate and size of update."""
    found = robustness.stored()["sizes"]
    return _with_machines(rates.of_sizes(found["points"]), found["environment"])


def problems() -> str:
    """Scores by learning rate, a table per problem."""
    return rates.of_problems(robustness.stored())


def costs() -> str:
    """What a bounded step at a rate that nobody chose costs against tuned SGD."""
    found = robustness.stored()
    here = [found[name]["environment"] for name in PROBLEMS]
    return _with_machines(rates.of_costs(found), *here)


def _of_search(table: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    # Each task of `search` has been measured by a run of its own.
    def text() -> str:
        found = stored_search()
        here = [each["environment"] for each in found.values()]
        return _with_machines(table(found), *here)

    return text


def rate_targets() -> str:
    """What every rate in a range has to reach."""
    return speed.of_verdicts(verdicts(robustness.stored()))


def _whole(
    name: str, table: Callable[[Any], str], peers: Iterable[str] = ()
) -> Callable[[], str]:
    # A table of stored results, and the machine that measured them.
    def text() -> str:
        stored = storage.read(name)
        return _with_machines(
            table(stored["results"]), stored["environment"], peers=peers
        )

    return text


def _kept(
    name: str,
    table: Callable[[Any], Iterable[str]],
    *kinds: type[Finding],
    wanted: Callable[[Any], bool] = lambda found: True,
    peers: Iterable[str] = (),
) -> Callable[[], str]:
    # A table of findings that are stored one by one, and their machines.
    def text() -> str:
        lines = table(filter(wanted, kept.read(name, *kinds)))
        here = kept.environments(name)
        return _with_machines("\n".join(lines), *here, peers=peers)

    return text


def _task(name: str) -> Callable[[], str]:
    # Each task of `accuracy` has been measured by a run of its own.
    def table() -> str:
        found = stored()[name]
        text = quality.of_arms(TASKS[name], found["arms"])
        return _with_machines(text, found["environment"])

    return table


TABLES: dict[str, Callable[[], str]] = {
    "throughput": throughput,
    "first": first,
    "beside-adam": beside_adam,
    "workloads": workloads,
    "targets": targets,
    "growth": _kept("growth", scaling.growth, Curve, peers=_PEERS),
    "embeddings": _whole("embeddings", scaling.of_vocabularies, _PEERS[:2]),
    "replicas": _whole("replicas", scaling.of_workers),
    **{name: _task(name) for name in TASKS},
    "sizes": sizes,
    "problems": problems,
    "costs": costs,
    "search": _of_search(functools.partial(quality.of_search, is_held_out=True)),
    "search-development": _of_search(
        functools.partial(quality.of_search, is_held_out=False)
    ),
    "search-tasks": _of_search(quality.of_search_tasks),
    "rate-targets": rate_targets,
    "port": port,
    "order": _whole("order", quality.of_orders),
    "linear": _whole("linear", quality.of_problems),
    "blocks": _kept("blocks", cost.blocks, Blocks, wanted=lambda b: not b.threads),
    "blocks-one-thread": _kept(
        "blocks", cost.blocks, Blocks, wanted=lambda b: b.threads == 1
    ),
    "ablation": _kept("ablation", cost.ablation, Form),
    "profile": _kept("profile", cost.profile, Profile),
    "nonfinite": _kept("nonfinite", cost.nonfinite, Options),
    "clipping": _kept("clipping", cost.clipping, Options),
    "overflow": _kept("overflow", cost.overflow, Overflow),
    "averages": _kept("averages", cost.averages, Options),
    "front": _kept("front", cost.front, Front),
    "capped": _kept("capped", cost.capped, Options),
    "records": _kept("records", cost.records, Records),
    "firstcall": _kept("firstcall", cost.first_calls, FirstCalls),
    "kept": _kept("firstcall", cost.restarts, Restarts),
    "applications": _kept("applications", cost.applications, Application),
    "threshold": _kept("threshold", cost.threshold, Thresholds, Order),
    "equality": _kept("equality", equality.equality, Model),
    "on-jax": _kept("on_jax", speed.on_jax, OnJax),
    "quick": _kept("quick", speed.quick, Compared),
}
