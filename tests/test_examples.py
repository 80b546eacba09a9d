"""The examples run, and what they assert holds.

`quickstart` is the README's first command, which the gate runs; `test_workers.py` runs
`multi_worker`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"quickstart", "multi_worker"}
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py")], check=True)
