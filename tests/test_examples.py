"""The examples run, and what they assert holds; the first is the README's command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["custom_train_step", "large_vocabulary", "sklearn_pipeline", "textbook_sgd"],
)
def test_example(name: str) -> None:
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py")], check=True)
