"""The notebook of the quickstart is clean as it is stored, and runs from top to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

NOTEBOOK: dict[str, Any] = json.loads(
    (ROOT / "examples" / "quickstart.ipynb").read_text()
)
CELLS: list[dict[str, Any]] = NOTEBOOK["cells"]
CODE = ["".join(c["source"]) for c in CELLS if c["cell_type"] == "code"]
# Runs each cell in one namespace. A line before the output of each tells them apart.
RUN = """\
import json
import sys

names = {"__name__": "__main__"}
for i, cell in enumerate(json.load(sys.stdin)):
    print(f"cell {i}", flush=True)
    exec(compile(cell, f"cell {i}", "exec"), names)
"""


def outputs(cells: list[str], folder: Path) -> list[str]:
    """What each cell prints, in a fresh process that has run those before it."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(cells),
        capture_output=True,
        check=True,
        cwd=folder,
        text=True,
        timeout=120,
    )
    return re.split(r"^cell \d+\n", done.stdout, flags=re.M)[1:]


def stored(notebook: dict[str, Any]) -> list[str]:
    """The ids of cells with an output, or the number of a run, in the file."""
    return [
        cell["id"]
        for cell in notebook["cells"]
        if cell.get("outputs") or cell.get("execution_count") is not None
    ]


def test_it_is_a_notebook() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    keys = {"cell_type", "id", "metadata", "source"}
    of_code = keys | {"execution_count", "outputs"}
    for cell in CELLS:
        assert set(cell) == (of_code if cell["cell_type"] == "code" else keys)
    ids = [cell["id"] for cell in CELLS]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each) for each in ids)


def test_no_output_is_stored() -> None:
    assert stored(NOTEBOOK) == []


def test_a_stored_output_would_be_found() -> None:
    ran = {"id": "a", "outputs": [], "execution_count": 1}
    shown = {"id": "b", "outputs": [{"text": "0.9"}], "execution_count": None}
    assert stored({"cells": [ran, shown, {"id": "c"}]}) == ["a", "b"]


def test_cells_run_in_one_namespace(tmp_path: Path) -> None:
    cells = ["x = 2", "def f():\n    return x", "print(f())\nprint(f() + 1)"]
    assert outputs(cells, tmp_path) == ["", "", "2\n3\n"]
    with pytest.raises(subprocess.CalledProcessError):
        outputs(["x = 2", "y"], tmp_path)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    printed = outputs(CODE, tmp_path)
    assert len(printed) == len(CODE)
    after_ten = float(re.findall(r"epoch 10: (\S+)", "".join(printed))[0])
    assert after_ten > 0.9
    faster, difference, largest = re.fullmatch(
        r"SGDPlus is faster by (\S+) times\.\n"
        r"Weights differ by (\S+), the largest is (\S+)\.\n",
        printed[-1],
    ).groups()
    assert float(faster) > 1
    assert float(difference) < 1e-4 * float(largest)
    assert list(tmp_path.iterdir()) == []
