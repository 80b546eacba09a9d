"""The shape of the package: who imports whom, how long, and where Keras is private."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_sgd_plus

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(keras_sgd_plus.__file__).resolve().parent  # installed, or in ROOT
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
MAX_LINES = 280  # without docstrings

# Who may import whom. A new arrow is a decision about the design: it is made here.
ALLOWED = {
    "__init__": {"_arrays", "_optimizer", "_resume"},
    "_arrays": {"_arguments", "_checks"},
    "_resume": {
        "_arrays",
        "_checks",
        "_examples",
        "_hook",
        "_keras",
        "_ledger",
        "_messages",
        "_strategy",
        "_train_function",
    },
    "_arguments": set(),
    "_optimizer": {
        "_arguments",
        "_checks",
        "_compile",
        "_hook",
        "_keras",
        "_ledger",
        "_messages",
        "_order",
        "_settings",
        "_step",
        "_strategy",
    },
    "_settings": set(),
    "_step": {
        "_checks",
        "_compile",
        "_examples",
        "_group",
        "_keras",
        "_ledger",
        "_loop",
        "_lowering",
        "_messages",
        "_order",
        "_plan",
        "_replicas",
        "_strategy",
        "_watch",
        "_state",
    },
    "_replicas": {"_keras", "_state", "_strategy"},
    "_strategy": set(),
    "_watch": {"_keras", "_messages"},
    "_compile": {
        "_examples",
        "_group",
        "_keras",
        "_messages",
        "_strategy",
        "_watch",
    },
    "_train_function": {"_ledger", "_strategy"},
    "_ledger": {"_messages", "_nonfinite", "_strategy", "_xla"},
    "_guard": {"_keras", "_nonfinite", "_update"},
    "_nonfinite": set(),
    "_loop": {
        "_examples",
        "_group",
        "_kernel",
        "_keras",
        "_lowering",
        "_nonfinite",
        "_tables",
        "_xla",
    },
    "_group": {
        "_examples",
        "_guard",
        "_kernel",
        "_keras",
        "_layout",
        "_messages",
        "_nonfinite",
        "_plan",
        "_state",
        "_strategy",
        "_tables",
        "_update",
        "_xla",
    },
    "_idle": set(),
    "_plan": {"_idle", "_keras", "_state"},
    "_rows": {"_idle", "_lowering", "_xla"},
    "_tables": {"_idle", "_plan", "_rows", "_state"},
    "_state": {"_keras", "_lowering", "_messages", "_update"},
    "_hook": {
        "_backend",
        "_keras",
        "_ledger",
        "_lowering",
        "_messages",
        "_strategy",
        "_train_function",
    },
    "_backend": {
        "_channels",
        "_convolution",
        "_keras",
        "_losses",
        "_lowering",
        "_random",
        "_tables",
    },
    "_channels": {"_lowering"},
    "_losses": set(),
    "_random": {"_lowering"},
    "_checks": {"_examples", "_keras", "_messages", "_strategy"},
    "_kernel": {"_lowering"},
    "_layout": {"_keras"},
    "_lowering": set(),
    "_order": {"_xla"},
    "_xla": set(),
    "_convolution": {"_lowering"},
    "_messages": set(),
    "_examples": set(),
    "_keras": set(),
    "_update": set(),
}


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imported(tree: ast.AST) -> set[str]:
    """Modules of this package that a module imports, at the top or in a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = ("keras_sgd_plus." if node.level else "") + (node.module or "")
            names = [f"{parent.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "keras_sgd_plus":
                found.add(parts[1] if parts[1:2] != ["SGDPlus"] else "__init__")
    return found


def private_uses(tree: ast.AST) -> list[str]:
    """Private names of other objects, and imports of Keras's private modules."""
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
            found += [a.name for a in node.names if a.name.startswith("keras.src")]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "keras.src" or module.startswith("keras.src."):
                found.append(f"line {node.lineno}: {module}")
            elif module == "keras":
                found += [a.name for a in node.names if a.name == "src"]
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "keras.src":
            found.append(f"line {node.lineno}: keras.src")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_every_module_has_a_place() -> None:
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_import_directions(module: str) -> None:
    assert imported(_tree(module)) <= ALLOWED[module]


@pytest.mark.parametrize("module", MODULES)
def test_only_init_knows_the_optimizer(module: str) -> None:
    found = imported(_tree(module)) & {"_optimizer", "__init__"}
    assert found == ({"_optimizer"} if module == "__init__" else set())


def test_imports_have_no_cycle() -> None:
    left = {module: imported(_tree(module)) for module in MODULES}
    while left:
        free = [module for module, needs in left.items() if not needs & set(left)]
        assert free, f"a cycle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short(module: str) -> None:
    lines = len((PACKAGE / f"{module}.py").read_text().splitlines())
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if ast.get_docstring(node) else None
            lines -= first.end_lineno - first.lineno + 1 if first else 0
    assert lines <= MAX_LINES


# `_strategy` is the same for what TensorFlow hides of tf.distribute.
@pytest.mark.parametrize(
    "module", [m for m in MODULES if m not in ("_keras", "_strategy")]
)
def test_private_keras_only_in_one_module(module: str) -> None:
    assert private_uses(_tree(module)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import keras_sgd_plus._loop", {"_loop"}),
        ("from keras_sgd_plus import _a, _b", {"_a", "_b"}),
        ("from keras_sgd_plus._loop import walk", {"_loop"}),
        ("from . import _loop", {"_loop"}),
        ("from ._loop import walk", {"_loop"}),
        ("def f():\n    from keras_sgd_plus import SGDPlus", {"__init__"}),
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
