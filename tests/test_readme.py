"""The README's Python blocks run as written, and its commands are the two it names."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    if "import keras" in block
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    runpy.run_path(str(script))
    printed = capsys.readouterr().out
    for expected in re.findall(r"print\(.*\)  # (\S+)(?::.*)?\n", block):
        assert f"{expected.rstrip(':')}\n" in printed


def test_there_are_blocks_and_two_commands() -> None:
    assert len(BLOCKS) == 2
    commands = re.findall(r"^python -m pip install -e .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert all(" && " in command for command in commands)


def test_docstring_example_runs(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from keras_sgd_plus import SGDPlus

    (block,) = re.findall(
        r"Example:\n\n\s+```python\n(.*?)```", SGDPlus.__doc__ or "", flags=re.DOTALL
    )
    script = tmp_path / "block.py"
    script.write_text("\n".join(line[4:] for line in block.splitlines()))
    runpy.run_path(str(script))
    assert "2000\n" in capsys.readouterr().out
