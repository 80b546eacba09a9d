"""Rates in examples and documentation are such that people can start from them."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocks import blocks_of
from tests.support.paths import PACKAGE, ROOT

# A step is at most so many gradients long, with all that momentum adds to it: half of
# what 0.01 with momentum 0.9 makes, which diverges on half of what people try.
MOST = 0.05
SOURCES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted(PACKAGE.rglob("*.py")),
]
NAMES = ("SGDPlus", "SGD")


def _blocks(text: str) -> Iterator[str]:
    yield from map(textwrap.dedent, blocks_of(text))


def _numbers(call: ast.Call) -> dict[str, float]:
    given = dict(zip(("learning_rate", "momentum"), call.args, strict=False))
    given |= {k.arg: k.value for k in call.keywords if k.arg}
    found = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
    return {k: v for k, v in found.items() if isinstance(v, (int, float))}


def long_steps(code: str) -> list[str]:
    """Calls that make an optimizer whose momentum is too much for its rate."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            numbers = _numbers(node)
            momentum = numbers.get("momentum", 0.0)
            if name in NAMES and momentum:
                if numbers.get("learning_rate", 0.01) / (1 - momentum) > MOST:
                    found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_documented_rates_work(path: Path) -> None:
    text = path.read_text()
    codes = list(_blocks(text))
    if path.suffix == ".py" and path.parent.name == "examples":
        codes.append(text)
    assert [call for code in codes for call in long_steps(code)] == []


def test_a_long_step_would_be_found() -> None:
    bad = ["SGDPlus(0.01, momentum=0.9)", "SGD(learning_rate=0.01, momentum=0.9)"]
    assert [bool(long_steps(f"x = keras.{call}")) for call in bad] == [True, True]
    good = ["SGDPlus(0.001, momentum=0.9)", "SGDPlus(0.1)", "Adam(0.01, 0.9)"]
    assert [long_steps(call) for call in good] == [[], [], []]
