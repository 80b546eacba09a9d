"""Questions about the syntax of a module that more than one test asks."""

from __future__ import annotations

import ast


def pieces_of_f_strings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are parts of an f-string, which is one text itself."""
    return {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
