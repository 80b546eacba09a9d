"""How large the project is: `python -m tests.project.size` prints a table.

Run it in two checkouts to see what a change of the layout has saved.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import PACKAGE, ROOT


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


def trees(folder: Path) -> dict[Path, ast.Module]:
    """The modules below a folder."""
    paths = sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)
    return {path: ast.parse(path.read_text()) for path in paths}


def size_of(folder: Path) -> Size:
    """The size of a folder."""
    found = trees(folder)
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


def arrows(folder: Path) -> int:
    """How many pairs of folders there are of which one imports the other."""
    found = set()
    for path, tree in trees(folder).items():
        own = (*path.relative_to(folder).parts[:-1], "")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    parts = f"{node.module}.{alias.name}".split(".")
                    if parts[0] == folder.name and parts[1] != own:
                        found.add((own, parts[1]))
    return len(found)


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
    print(f"\narrows between folders of {PACKAGE.name}: {arrows(PACKAGE)}")


if __name__ == "__main__":
    main()
