"""Python blocks of Markdown pages: they run as written and print what they say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

_BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
_SAID = re.compile(r"^print\(.*\)  # (\S+?)(?::? .*)?$", flags=re.MULTILINE)


def blocks_of(text: str) -> list[str]:
    """The Python blocks of a page."""
    return _BLOCK.findall(text)


def assert_prints_what_it_says(
    block: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs a block in `folder`; each `print` must end with a comment, its output.

    A block on replicas runs in a process of its own, on the devices of a user, not
    those of the tests.
    """
    script = folder / "block.py"
    script.write_text(block)
    if "tf.distribute" in block:
        run = [sys.executable, str(script)]
        printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    else:
        runpy.run_path(str(script))
        printed = capsys.readouterr().out
    expected = _SAID.findall(block)
    assert len(expected) == len(re.findall(r"^\s*print\(", block, flags=re.M))
    lines = printed.splitlines()
    assert lines[len(lines) - len(expected) :] == expected
