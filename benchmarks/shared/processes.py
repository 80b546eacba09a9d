"""Calls of functions in new processes, for measurements that a process allows once.

XLA reads its flags once, TensorFlow its threads, and a peak of memory never falls.
`python -m benchmarks.shared.processes module function arguments` is the other side.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.shared.machine import ROOT

WITHOUT_FLAGS = {"XLA_FLAGS": None}  # XLA's defaults, whatever the user has set
_MARK = "RESULT "  # frameworks print on stdout, too


class Call:
    """A call that runs in a new process from now on.

    Args:
        function: of a module of ours. What it returns must go through JSON; a generator
            function gives one answer per value.
        arguments: what JSON can hand over.
        environment: variables for the process; None takes one out.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        place = [function.__module__, function.__name__]
        changed = {**os.environ, **(environment or {})}
        # A pipe that nobody reads would stop the process when it is full.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *place, json.dumps(arguments)],
            env={name: value for name, value in changed.items() if value is not None},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answers(self) -> Iterator[Any]:
        """Each answer, as soon as it is there; RuntimeError if the function failed."""
        for line in self._process.stdout or ():
            if line.startswith(_MARK):
                yield json.loads(line.removeprefix(_MARK))
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["no message"]
        self._errors.close()
        if code:
            raise RuntimeError(lines[-1][:200])

    def answer(self) -> Any:
        """The answer of a function that gives one."""
        (answer,) = self.answers()
        return answer


def in_process(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str | None] | None = None,
) -> Any:
    """The answer of one call in a process of its own, as of `Call`."""
    return Call(function, *arguments, environment=environment).answer()


def _serve(module: str, function: str, arguments: str) -> None:
    found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    for answer in found if isinstance(found, Iterator) else (found,):
        print(_MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
