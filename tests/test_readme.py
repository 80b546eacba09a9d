"""The README's Python blocks run as written, and its commands are the two it names."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
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
@pytest.mark.filterwarnings("ignore:Every loss and gradient should be finite")
def test_block_runs(
    block: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text(block)
    if "tf.distribute" in block:  # for the devices of a user, not those of the tests
        run = [sys.executable, str(script)]
        printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    else:
        runpy.run_path(str(script))
        printed = capsys.readouterr().out
    for expected in re.findall(r"print\(.*\)  # (\S+)(?::.*)?\n", block):
        assert f"{expected.rstrip(':')}\n" in printed


def test_there_are_blocks_and_two_commands() -> None:
    assert len(BLOCKS) == 5
    commands = re.findall(r"^python -m pip install -e .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert all(" && " in command for command in commands)


@pytest.mark.parametrize(
    ("name", "printed"),
    [("SGDPlus", "2000\n"), ("ExactResume", ""), ("SeededArrays", "3 (4, 1)\n")],
)
def test_docstring_example_runs(
    name: str,
    printed: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras_sgd_plus

    documented = getattr(keras_sgd_plus, name).__doc__ or ""
    (block,) = re.findall(
        r"Example:\n\n\s+```python\n(.*?)```", documented, flags=re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text("\n".join(line[4:] for line in block.splitlines()))
    runpy.run_path(str(script))
    assert printed in capsys.readouterr().out
