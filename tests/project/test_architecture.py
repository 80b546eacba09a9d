"""The shape of the project: which folder imports which, how long, what is private."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, ROOT

BENCHMARKS = ROOT / "benchmarks"
MAX_MODULE = 650  # lines
MAX_FUNCTION = 60  # lines beside the docstring

# Which folder may import which; "" is the top of the package. A new arrow is a decision
# about the design, and it is made here.
ALLOWED = {
    "": {"_callbacks", "_optimizer", "_private", "_report"},
    "_callbacks": {
        "_fit",
        "_loop",
        "_optimizer",
        "_private",
        "_replicas",
        "_report",
        "_rule",
    },
    "_optimizer": {
        "_advice",
        "_batch",
        "_fit",
        "_private",
        "_replicas",
        "_report",
        "_rule",
    },
    "_fit": {"_advice", "_forms", "_private", "_replicas", "_report", "_rule"},
    "_batch": {
        "_advice",
        "_forms",
        "_loop",
        "_private",
        "_replicas",
        "_report",
        "_rule",
    },
    "_loop": {"_forms", "_lazy", "_private", "_replicas", "_report", "_rule"},
    "_lazy": {"_forms", "_private", "_rule"},
    "_advice": {"_private", "_report", "_rule"},
    "_report": {"_private", "_replicas", "_rule"},
    "_rule": {"_private"},
    "_forms": {"_private"},
    "_private": set(),
}
# The same for the benchmarks; "" is `python -m benchmarks` itself.
ALLOWED_BENCHMARKS = {
    "": {"shared"},  # it loads a study, and the report on it, by name
    "report": {
        "arms",
        "cost",
        "equality",
        "quality",
        "scaling",
        "shared",
        "speed",
        "timing",
    },
    "speed": {"arms", "shared", "timing"},
    "scaling": {"arms", "shared", "timing"},
    "cost": {"arms", "shared"},
    "quality": {"shared"},
    "equality": {"shared"},
    "timing": {"arms"},
    "arms": set(),
    "shared": set(),
}
ROOMS = {PACKAGE: ALLOWED, BENCHMARKS: ALLOWED_BENCHMARKS}


def _modules(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)


MODULES = _modules(PACKAGE)
ALL_MODULES = [*MODULES, *_modules(BENCHMARKS)]


def _id(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _folder(path: Path, root: Path) -> str:
    return (*path.parent.relative_to(root).parts, "")[0]


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


def _arrows(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in _modules(root):
        folder = _folder(path, root)
        others = imported(_tree(path), root.name) - {folder}
        found.setdefault(folder, set()).update(others)
    return found


def _circle(arrows: dict[str, set[str]]) -> set[str]:
    """The folders that are left when those are taken away that import none."""
    left = dict(arrows)
    while left:
        free = [folder for folder, needs in left.items() if not needs & set(left)]
        if not free:
            return set(left)
        for folder in free:
            del left[folder]
    return set()


def private_uses(tree: ast.AST) -> list[str]:
    """Private names of other objects, and imports of private modules of Keras."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
                found += [
                    f"line {node.lineno}: {node.func.id} {name}"
                    for name in constants
                    if isinstance(name, str) and _is_private(name)
                ]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith(_PRIVATE)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                f"line {node.lineno}: {n}" for n in names if n.startswith(_PRIVATE)
            ]
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "keras.src":
            found.append(f"line {node.lineno}: keras.src")
    return found


_PRIVATE = ("keras.src", "tensorflow.python")
_OF_NAMED_TUPLES = (
    "_replace",
    "_asdict",
    "_fields",
)  # documented, in spite of the name


def _is_private(name: str) -> bool:
    hidden = name.startswith("_") and not name.endswith("__")
    return hidden and name not in _OF_NAMED_TUPLES


def docstring_lines(node: ast.AST) -> int:
    """The lines of an own docstring; 0 without one."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    if not isinstance(node, documented) or not ast.get_docstring(node):
        return 0
    first = node.body[0]
    return (first.end_lineno or 0) - first.lineno + 1


@pytest.mark.parametrize("root", ROOMS, ids=lambda root: root.name)
def test_arrows_between_folders(root: Path) -> None:
    arrows, allowed = _arrows(root), ROOMS[root]
    assert set(arrows) == set(allowed)
    new = {f: needs - allowed[f] for f, needs in arrows.items() if needs - allowed[f]}
    assert new == {}
    gone = {f: allowed[f] - needs for f, needs in arrows.items() if allowed[f] - needs}
    assert gone == {}, "arrows that nobody needs"


@pytest.mark.parametrize("root", ROOMS, ids=lambda root: root.name)
def test_no_circle_of_folders(root: Path) -> None:
    assert _circle(_arrows(root)) == set()


def test_a_circle_would_be_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_the_top_has_only_the_public_names() -> None:
    files = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    assert files == {"__init__.py", "_replicas.py", "py.typed"}


@pytest.mark.parametrize(
    "folder",
    [root / name for root, allowed in ROOMS.items() for name in allowed if name],
    ids=_id,
)
def test_every_folder_has_a_face(folder: Path) -> None:
    """Its docstring tells a reader what the room is for."""
    text = ast.get_docstring(_tree(folder / "__init__.py")) or ""
    assert len(text) > 60


@pytest.mark.parametrize("path", ALL_MODULES, ids=_id)
def test_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE


def test_no_two_modules_share_a_name() -> None:
    names = [p.stem for p in MODULES if p.name != "__init__.py"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE]
)
def test_a_face_is_a_docstring(path: Path) -> None:
    """Modules are imported directly, one way."""
    assert len(_tree(path).body) == 1


@pytest.mark.parametrize("path", ALL_MODULES, ids=_id)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)
            assert lines <= MAX_FUNCTION, node.name


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.parent.name != "_private"], ids=_id
)
def test_private_names_of_others_only_in_one_folder(path: Path) -> None:
    assert private_uses(_tree(path)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import keras_sgd_plus._loop.walk", {"_loop"}),
        ("from keras_sgd_plus import _a, _b", {"_a", "_b"}),
        ("from keras_sgd_plus._loop import walk", {"_loop"}),
        ("from keras_sgd_plus._loop.walk import walk", {"_loop"}),
        ("def f():\n    from keras_sgd_plus import SGDPlus", {""}),
        ("import keras\nfrom os import path", set()),
    ],
)
def test_imported_sees_every_form(source: str, expected: set[str]) -> None:
    assert imported(ast.parse(source)) == expected


@pytest.mark.parametrize(
    "source",
    [
        "model._symbolic_build()",
        "self.model._loss_tracker",
        "getattr(model, '_compile_loss', None)",
        "import keras.src.backend",
        "from keras.src import backend",
        "from keras import src",
        "keras.src.backend",
        "from tensorflow.python.ops import control_flow_util",
    ],
)
def test_private_uses_sees_every_form(source: str) -> None:
    assert private_uses(ast.parse(source))


def test_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def _texts() -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if name not in (".git", ".hypothesis", "__pycache__", "build", "dist")
            and not name.endswith("_cache")
            and not (here / name / "pyvenv.cfg").exists()
        ]
        for name in names:
            path = here / name
            if path.suffix in ("", ".py", ".md", ".toml", ".sh", ".txt", ".yml"):
                yield path, path.read_text(errors="ignore")


def test_nothing_points_outside_the_repository() -> None:
    outside = ("/" + "work/", ".." + "/shared")  # in pieces: this file is searched too
    found = [
        str(path.relative_to(ROOT))
        for path, text in _texts()
        if any(name in text for name in outside)
    ]
    assert found == []
