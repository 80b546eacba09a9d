"""Questions about the syntax of modules that more than one test asks."""

from __future__ import annotations

import ast
from pathlib import Path


def modules(root: Path) -> dict[Path, ast.Module]:
    """The modules below a folder."""
    paths = sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)
    return {path: ast.parse(path.read_text()) for path in paths}


def imported(tree: ast.AST, package: str = "keras_sgd_plus") -> set[str]:
    """Folders of a package that a module imports, at the top or in a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package:
                found.add(parts[1] if parts[1:2] != ["SGDPlus"] else "")
    return found


def arrows(root: Path) -> dict[str, set[str]]:
    """By folder of a package, the folders that it imports; "" is the top."""
    found: dict[str, set[str]] = {}
    for path, tree in modules(root).items():
        folder = (*path.parent.relative_to(root).parts, "")[0]
        others = imported(tree, root.name) - {folder}
        found.setdefault(folder, set()).update(others)
    return found


def pieces_of_f_strings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are parts of an f-string, which is one text itself."""
    return {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
