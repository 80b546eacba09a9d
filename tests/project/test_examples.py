"""The examples run, say what comes, and change no file unless asked to.

The gate runs `quickstart`, the README's first command; test_workers.py runs
`multi_worker`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"quickstart", "multi_worker"}
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE)
# The gate runs those of the matrix on every push.
IN_MATRIX = {"find_wrong_labels", "sklearn_pipeline", "textbook_sgd"}
ROWS = [
    pytest.param(n, marks=pytest.mark.matrix if n in IN_MATRIX else pytest.mark.slow)
    for n in NAMES
]
# Twice what the docstrings say: other tests run beside them.
SECONDS = {"char_lm": 240, "large_vocabulary": 360}
FLAG = "--update-figure"


def _files() -> dict[Path, bytes]:
    """The files of the examples. Python's caches are not among them."""
    found = [p for p in EXAMPLES.rglob("*") if p.is_file()]
    return {p: p.read_bytes() for p in found if "__pycache__" not in p.parts}


@pytest.mark.parametrize("name", ROWS)
def test_example(name: str, tmp_path: Path) -> None:
    before = _files()
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(
        command,
        check=False,
        timeout=SECONDS.get(name, 120),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "triggered tf.function retracing" not in done.stderr
    assert "The loss should" not in done.stderr  # each of them learns
    assert _files() == before
    assert list(tmp_path.iterdir()) == []


def _is_asked(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and ast.unparse(test) == (
        f"'{FLAG}' in sys.argv[1:]"
    )


def unasked(source: str) -> list[str]:
    """Calls of functions that save a figure, outside of `if FLAG in sys.argv[1:]`."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    saving = {f.name for f in functions if "savefig" in ast.unparse(f)}
    asked = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and _is_asked(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in saving
        and id(node) not in asked
    ]


FIGURES = sorted(p for p in EXAMPLES.glob("*.py") if "savefig" in p.read_text())


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_is_drawn_when_asked_for(path: Path) -> None:
    source = path.read_text()
    assert unasked(source) == []
    assert FLAG in (ast.get_docstring(ast.parse(source)) or "")


def test_there_are_figures() -> None:
    assert [path.stem for path in FIGURES] == [
        "find_wrong_labels",
        "online_flights",
        "quickstart",
        "textbook_sgd",
    ]
    drawn = {path.stem for path in (EXAMPLES / "figures").iterdir()}
    assert drawn == {path.stem for path in FIGURES}


def test_a_figure_that_nobody_asked_for_would_be_found() -> None:
    source = "def draw():\n    figure.savefig(FIGURE)\n\n\ndraw()"
    assert unasked(source) == ["draw()"]
    asked = source.replace(
        "\n\n\ndraw()", f"\nif {FLAG!r} in sys.argv[1:]:\n    draw()"
    )
    assert unasked(asked) == []
