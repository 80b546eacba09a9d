"""On another Keras training is right, or one error says so.

Each row changes one private name in the sources of Keras or TensorFlow, and trains.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.support.internals import keras_backend, keras_optimizer, keras_trainer
from tests.support.other_keras import Change
from tests.support.paths import PACKAGE, ROOT
from tests.support.private_names import ERROR, SLOWER, TABLES, Row
from tests.support.syntax import pieces_of_f_strings

FOLDER = PACKAGE / "_private"
TOLERANCE = 1e-5  # of weights of size one
# The whole table is of the matrix, other parameters of the slow tier.
BY_DEFAULT = {("moved", "keras.src.backend.tensorflow.nn")}
# Functions that are wrapped like `conv`, whose row the matrix has.
ALIKE = set(keras_backend.lowered_functions()) - {"conv"}
# Words in the folder's code that are public names, or names of its own.
PUBLIC = {
    "attributes of Python's functions": (
        "__code__ __func__ __init__ __module__ __name__"
    ),
    "the only way to a caller's frame": "_getframe",
    "methods and arguments of keras.Model": (
        "call callbacks compute_metrics evaluate fit initial_epoch sample_weight x y "
        "y_pred"
    ),
    "arguments of keras.optimizers.SGD": "gradient_accumulation_steps use_ema",
    "an argument of keras.losses.SparseCategoricalCrossentropy": "ignore_class",
    "arguments of the methods, which come with each": (
        "data data_batch force iterator seed self step_function"
    ),
    "an attribute of every tf.function, and a stage of its compilation": (
        "optimized_hlo python_function"
    ),
    "attributes of TensorFlow's graphs and variables": "captures handle",
    "looked for in a user's optimizer alone, to refuse what replaces them": " ".join(
        {*keras_optimizer.UPDATE_METHODS, *keras_optimizer.SCALED_UPDATE_METHODS}
    ),
    "our own": "asks_thread keras_sgd_plus_taken seed_name",
}
# Called by TensorFlow in so many ways that a parameter more cannot be simulated, or
# generated, without a `def` in a file; or with the name of a method.
NEVER_LONGER = {
    "compute_output_spec",
    "dynamic_slice",
    "ResourceVariable",
    "_get_default_replica_mode",
    "_pop_per_thread_mode",
    "_push_per_thread_mode",
}
WORDS = re.compile(r"[A-Za-z_][\w.]*")


def _rows() -> Iterator[Any]:
    for table, rows in TABLES.items():
        for name, row in rows.items():
            is_default = (table, name) in BY_DEFAULT
            is_slow = table == "resigned" or name in ALIKE
            tier = pytest.mark.slow if is_slow else pytest.mark.matrix
            marks = () if is_default else (tier,)
            yield pytest.param(table, row, id=f"{table}-{name}", marks=marks)


@pytest.mark.parametrize(("table", "row"), list(_rows()))
def test_trains_right_or_says_so(table: str, row: Row) -> None:
    command = [sys.executable, "-m", "tests.support.on_other_keras", table, row.name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    assert found, run.stderr[-2000:]
    told = json.loads(found[0].removeprefix("RESULT "))
    assert told["changed"], "the name stands nowhere"
    if row.outcome == ERROR:
        assert told["error"] == "RuntimeError", told
        for part in (row.name.rpartition(".")[2], "Received: Keras ", "pip install "):
            assert part in told["text"]
    else:
        assert told["error"] is None, told["text"]
        assert told["difference"] <= TOLERANCE
        assert len(told["warnings"]) == (row.outcome == SLOWER), told["warnings"]
        assert all("but slower" in text for text in told["warnings"])


def _words(tree: ast.AST) -> set[str]:
    """Texts that may be names, attributes with an underscore, and imports."""
    inside = pieces_of_f_strings(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inside and WORDS.fullmatch(node.value):
                found.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if not node.attr.endswith("__"):
                found.add(node.attr)
        elif isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    top = {"keras", "tensorflow"}  # public
    own = sys.stdlib_module_names | {"keras_sgd_plus"}
    return {w for w in found - top if w.split(".")[0] not in own}


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(FOLDER.glob("*.py")) if p.name != "names.py"],
    ids=lambda path: path.name,
)
def test_every_private_name_has_a_row(path: Path) -> None:
    rows = [row for table in TABLES.values() for row in table.values()]
    known = {word for words in PUBLIC.values() for word in words.split()}
    for row in rows:
        known |= {row.name, *([] if isinstance(row.change, Change) else row.change)}
    found = _words(ast.parse(path.read_text()))
    assert {w for w in found - known if not hasattr(tf.raw_ops, w)} == set()


def test_a_name_without_a_row_would_be_found() -> None:
    source = """
from tensorflow.python.ops import some_module
names.attribute(model, "_new")
names.call(model, "new_method")
model._other
"""
    found = _words(ast.parse(source))
    assert found == {"tensorflow.python.ops", "_new", "new_method", "_other"}


def test_functions_and_methods_are_changed_both_ways() -> None:
    """What is called with arguments may be missing, or may take others."""
    wrapped = {*keras_backend.lowered_functions(), *keras_trainer.trainer_methods()}
    wrapped -= {"fit"}  # public
    calls: set[str] = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "names.call":
                calls.add(ast.literal_eval(node.args[1]))
    assert wrapped | calls <= set(TABLES["renamed"])
    assert wrapped | calls - NEVER_LONGER <= set(TABLES["resigned"])
