"""The shape of the project: which folder imports which, how long, what is private."""

from __future__ import annotations

import ast
import graphlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, ROOT
from tests.support.syntax import arrows, imported, modules

BENCHMARKS = ROOT / "benchmarks"
MAX_MODULE = 650  # lines
MAX_FUNCTION = 60  # lines beside the docstring

# Which folder may import which; "" is the top of the package. A new arrow is a decision
# about the design, and it is made here.
ALLOWED = {
    "": {"_callbacks", "_compilations", "_optimizer", "_private", "_rate", "_report"},
    "_rate": {
        "_advice",
        "_batch",
        "_callbacks",
        "_fit",
        "_loop",
        "_optimizer",
        "_private",
        "_report",
        "_rule",
    },
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
    "_fit": {
        "_advice",
        "_compilations",
        "_forms",
        "_private",
        "_replicas",
        "_report",
        "_rule",
    },
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
    "cost": {"arms", "shared", "timing"},
    "quality": {"shared"},
    "equality": {"shared"},
    "timing": {"arms"},
    "arms": set(),
    "shared": set(),
}
ROOMS = {PACKAGE: ALLOWED, BENCHMARKS: ALLOWED_BENCHMARKS}
MODULES = modules(PACKAGE)
ALL_MODULES = {**MODULES, **modules(BENCHMARKS)}


def _id(path: Path) -> str:
    return "/".join(path.parts[-2:])


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
_OF_NAMED_TUPLES = ("_replace", "_asdict", "_fields")  # documented


def _is_private(name: str) -> bool:
    hidden = name.startswith("_") and not name.endswith("__")
    return hidden and name not in _OF_NAMED_TUPLES


def _length(function: ast.FunctionDef) -> int:
    # Lines beside the docstring.
    first = function.body[0] if ast.get_docstring(function) else None
    documented = (first.end_lineno or 0) - first.lineno + 1 if first else 0
    return (function.end_lineno or 0) - function.lineno + 1 - documented


@pytest.mark.parametrize("root", ROOMS, ids=lambda root: root.name)
def test_arrows_between_folders(root: Path) -> None:
    found, allowed = arrows(root), ROOMS[root]
    assert set(found) == set(allowed)
    new = {f: needs - allowed[f] for f, needs in found.items() if needs - allowed[f]}
    assert new == {}
    gone = {f: allowed[f] - needs for f, needs in found.items() if allowed[f] - needs}
    assert gone == {}, "arrows that nobody needs"


@pytest.mark.parametrize("root", ROOMS, ids=lambda root: root.name)
def test_no_circle_of_folders(root: Path) -> None:
    graphlib.TopologicalSorter(arrows(root)).prepare()  # raises if there is one


def test_the_top_has_only_the_public_names() -> None:
    files = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    assert files == {"__init__.py", "_compilations.py", "_replicas.py", "py.typed"}


def test_every_folder_has_a_face() -> None:
    """Its docstring tells a reader what the room is for."""
    folders = [root / name for root, allowed in ROOMS.items() for name in allowed]
    faces = {f.name: ast.get_docstring(ALL_MODULES[f / "__init__.py"]) for f in folders}
    assert [name for name, text in faces.items() if len(text or "") <= 60] == []


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in ALL_MODULES}
    assert {_id(path): n for path, n in lines.items() if n > MAX_MODULE} == {}


def test_no_two_modules_share_a_name() -> None:
    names = [p.stem for p in MODULES if p.name != "__init__.py"]
    assert sorted(set(names)) == sorted(names)


def test_a_face_is_a_docstring() -> None:
    """Modules are imported directly, one way."""
    inner = [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE]
    assert [_id(path) for path in inner if len(MODULES[path].body) != 1] == []


def test_functions_are_short() -> None:
    lines = {
        f"{_id(path)} {node.name}": _length(node)
        for path, tree in ALL_MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in lines.items() if n > MAX_FUNCTION} == {}


def test_private_names_of_others_only_in_one_folder() -> None:
    found = {
        _id(path): private_uses(tree)
        for path, tree in MODULES.items()
        if path.parent.name != "_private"
    }
    assert {path: uses for path, uses in found.items() if uses} == {}


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
            if name == ".git":  # of a linked worktree
                continue
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
