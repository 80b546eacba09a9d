"""The examples run, and their assertions hold.

The gate runs `quickstart`, the README's first command; test_workers.py runs
`multi_worker`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"quickstart", "multi_worker"}
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    subprocess.run(command, check=True, timeout=120)  # the README promises that
