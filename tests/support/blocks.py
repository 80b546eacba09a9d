"""Python blocks of Markdown pages: they run as written and print what they say."""

from __future__ import annotations

import os
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


def printed_and_said(
    block: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], list[str]]:
    """The lines that a block prints when it runs, and those that its comments promise.

    Each `print` must end with a comment, its output. A block on replicas runs in a
    process of its own, on the devices of a user, not those of the tests; one that has
    to come first, too, and its cache is in the folder.
    """
    script = folder / "block.py"
    script.write_text(block)
    if "tf.distribute" in block or "keep_compilations" in block:
        run = subprocess.run(
            [sys.executable, "-W", "error::UserWarning:__main__", str(script)],
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            check=True,
            capture_output=True,
            text=True,
        )
        printed = run.stdout
    else:
        runpy.run_path(str(script))
        printed = capsys.readouterr().out
    said = _SAID.findall(block)
    assert len(said) == len(re.findall(r"^\s*print\(", block, flags=re.M))
    return printed.splitlines(), said
