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

STUDIES = {  # in the room of its question, some with others in one module
    "equality": "equality",
    "quick": "speed",
    "threshold": "cost",
    "speed": "speed",
    "on_jax": "speed",
    "growth": "scaling",
    "extremes": "speed",
    "ablation": "cost",
    "profile": "cost",
    "nonfinite": "cost.options",
    "clipping": "cost.options",
    "overflow": "cost",
    "averages": "cost.callbacks",
    "records": "cost.callbacks",
    "capped": "cost.options",
    "blocks": "cost",
    "firstcall": "cost",
    "front": "cost",
    "applications": "cost",
    "replicas": "scaling",
    "embeddings": "scaling",
    "accuracy": "quality",
    "search": "quality",
    "robustness": "quality",
    "order": "quality",
    "linear": "quality",
}
KEPT = (  # studies whose findings are stored one by one
    *("equality", "quick", "threshold", "ablation", "profile", "nonfinite"),
    *("clipping", "averages", "records", "capped", "firstcall", "applications"),
    *("blocks", "overflow", "growth", "on_jax", "front"),
)
REPORTS = {"figures": "report.figures.draw", "readme": "report.readme"}


def run(name: str, arguments: list[str]) -> int:
    """Runs a study, shows its findings as they come; 1 if one of them is missed.

    The study measures while its findings are read: a table grows row by row. Before
    each finding the run waits until the machine is quiet.
    """
    seen: list[Finding] = []
    room, _, shared = STUDIES[name].partition(".")
    study = _module(f"{room}.{shared or name}")
    tables = _module(f"report.tables.{room}")
    given = [name, arguments] if shared else [arguments]

    def findings() -> Iterator[Finding]:
        rest = iter(study.measure(*given))
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


def main(arguments: list[str]) -> int | str:
    """Runs what the first argument names; a text is an error."""
    name, *rest = arguments or [""]
    if name in STUDIES:
        return run(name, rest)
    if name in REPORTS:
        return _module(REPORTS[name]).main(rest)
    usage = f"usage: python -m benchmarks {{{','.join([*STUDIES, *REPORTS])}}} [--help]"
    if name not in ("-h", "--help"):
        return usage
    print(f"{__doc__}\n\n{usage}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
