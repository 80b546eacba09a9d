"""The benchmarks by name: `python -m benchmarks speed --quick`."""

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.shared import kept, machine
from benchmarks.shared.finding import Finding, Stored
from benchmarks.shared.quiet import QUIET

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STUDIES = {  # in the room of its question
    "equality": "equality",
    "quick": "speed",
    "threshold": "cost",
    "speed": "speed",
    "on_jax": "speed",
    "growth": "scaling",
    "extremes": "speed",
    "ablation": "cost",
    "profile": "cost",
    "nonfinite": "cost",
    "clipping": "cost",
    "overflow": "cost",
    "averages": "cost",
    "records": "cost",
    "capped": "cost",
    "blocks": "cost",
    "firstcall": "cost",
    "applications": "cost",
    "replicas": "scaling",
    "embeddings": "scaling",
    "accuracy": "quality",
    "untuned": "quality",
    "robustness": "quality",
    "order": "quality",
    "linear": "quality",
}
KEPT = (  # studies whose findings are stored one by one
    *("equality", "quick", "threshold", "ablation", "profile", "nonfinite"),
    *("clipping", "averages", "records", "capped", "firstcall", "applications"),
    *("blocks", "overflow", "growth", "on_jax"),
)
REPORTS = {"figures": "report.figures.draw", "readme": "report.readme"}


def run(name: str, arguments: list[str]) -> int:
    """Runs a study, shows its findings as they come; 1 if one of them is missed.

    The study measures while its findings are read: a table grows row by row. Before
    each finding the run waits until the machine is quiet.
    """
    room, seen = STUDIES[name], []
    study, tables = _module(f"{room}.{name}"), _module(f"report.tables.{room}")

    def findings() -> Iterator[Finding]:
        rest = iter(study.measure(arguments))
        while True:
            before = QUIET.wait()
            if (found := next(rest, None)) is None:
                return
            seen.append(found)
            if name in KEPT:
                kept.keep(name, found, [before, QUIET.drift()])
            yield found

    for text in getattr(tables, name)(findings()):
        print(text, flush=True)
    print(f"\n{machine.line(machine.environment())}")
    if name in KEPT:
        print(f"Written to benchmarks/results/{name}.json.")
        _module("report.figures.draw").draw(name)
    for found in seen:
        if isinstance(found, Stored):
            print(f"Written to benchmarks/results/{found.name}.json.")
            _module("report.figures.draw").draw(found.name)
    return int(any(found.missed for found in seen))


def _module(path: str) -> Any:
    # Only when a subcommand needs it: the others may need packages that are missing.
    return importlib.import_module(f"benchmarks.{path}")


if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or [""]
    if name in STUDIES:
        raise SystemExit(run(name, arguments))
    if name in REPORTS:
        raise SystemExit(_module(REPORTS[name]).main(arguments))
    commands = ",".join([*STUDIES, *REPORTS])
    raise SystemExit(f"usage: python -m benchmarks {{{commands}}}")
