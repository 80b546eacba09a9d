"""Writes tables into texts from stored results: `python -m benchmarks readme`.

A table stands between `<!-- table: name -->` and `<!-- end -->`. This module makes the
text between the two; a test fails if a file has another text there.
"""

from __future__ import annotations

import re

from benchmarks.report.stored_tables import TABLES
from benchmarks.shared import command
from benchmarks.shared.machine import ROOT

FILES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "jax.md",
    ROOT / "docs" / "recipes.md",
    ROOT / "docs" / "tips.md",
)
_REGION = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every marked region made from the results."""
    return _REGION.sub(
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[4]}", text
    )


def main(arguments: list[str]) -> int:
    """Rewrites the files."""
    command.options("readme", __doc__, arguments)
    for path in FILES:
        path.write_text(filled(path.read_text()))
        print(f"Written: {path.relative_to(ROOT)}")
    return 0
