"""How large the project is: `python -m tests.project.size` prints a table.

Run it in two checkouts to see what a change of the layout has saved.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import PACKAGE, ROOT
from tests.support.syntax import arrows, modules


class Size(NamedTuple):
    """The size of the Python files below a folder.

    Attributes:
        modules: files.
        lines: of them.
        statements: every `ast.stmt`, docstrings and imports among them.
        imports: statements that import.
        functions: with methods and functions in functions.
        anys: annotations in which `Any` stands, or an alias of it.
    """

    modules: int
    lines: int
    statements: int
    imports: int
    functions: int
    anys: int


def size_of(folder: Path) -> Size:
    """The size of a folder."""
    found = modules(folder)
    nodes = [node for tree in found.values() for node in ast.walk(tree)]
    aliases = {"Any", *_aliases_of_any(found)}
    return Size(
        len(found),
        sum(len(path.read_text().splitlines()) for path in found),
        sum(isinstance(node, ast.stmt) for node in nodes),
        sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
        sum(isinstance(node, ast.FunctionDef) for node in nodes),
        sum(_anys(node, aliases) for node in nodes),
    )


def _aliases_of_any(found: dict[Path, ast.Module]) -> set[str]:
    # `Tensor: TypeAlias = Any` makes each `Tensor` an `Any`.
    return {
        node.target.id
        for tree in found.values()
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Any"
    }


def _anys(node: ast.AST, aliases: set[str]) -> int:
    annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return sum(
        isinstance(name, ast.Name) and name.id in aliases
        for annotation in annotations
        if annotation is not None
        for name in ast.walk(annotation)
    )


def main() -> None:
    """Prints the table."""
    print("| folder | " + " | ".join(Size._fields) + " |")
    print("| --- |" + " ---: |" * len(Size._fields))
    for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks"):
        numbers = (f"{number:,}" for number in size_of(folder))
        print(f"| {folder.name} | {' | '.join(numbers)} |")
    count = sum(map(len, arrows(PACKAGE).values()))
    print(f"\narrows between folders of {PACKAGE.name}: {count}")


if __name__ == "__main__":
    main()
