"""Every message of the package has a test, beside the behaviour it belongs to."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, ROOT
from tests.support.syntax import pieces_of_f_strings

MIN_LENGTH = 60  # of a text that is a message, and no name or option
MIN_QUOTE = 12  # characters of at least two words, in a test

# Messages of which no test quotes two words in a row, for most of them are filled in:
# by the test that raises them, how they begin.
FILLED_IN = {
    "callbacks/test_average_weights.py": (
        "`start_epoch` must be an epoch of fit",
        "AverageWeights must be alone",
    ),
    "callbacks/test_damaged_saves.py": (
        "ExactResume must find saves that can be read.",
        "ExactResume must be able to finish the first save of a run.",
    ),
    "callbacks/test_example_log_refuses.py": (
        "The ids of ExampleLog must be rows of the data",
        "ExampleLog(id={}) must find its rows",
        "With ExampleLog(path=...) the first epoch must visit the last row",
        "ExampleLog keeps `{}` only if it is asked for.",
        "ExampleLog must be used without steps_per_execution",
        "`{}` must be a bool.",
    ),
    "callbacks/test_seeded_arrays.py": ("The rows of a list must have one shape.",),
    "distribute/test_refused.py": (
        "SGDPlus steps per example under tf.distribute.MirroredStrategy,",
        "train_on_batch must be called with one replica",
        "gradient_accumulation_steps must be None with several replicas",
        "The steps of several replicas must be neither one XLA computation nor",
    ),
    "distribute/test_use.py": ("Under several replicas SGDPlus should be called",),
    "distribute/test_workers.py": (
        "`directory` must be one that all workers see.",
        "Each row must be visited by one worker.",
    ),
    "loop/test_direct.py": (
        "A variable must be written either by Keras or by the model itself.",
        "Under a tf.distribute strategy the layers of a model must read",
    ),
    "optimizer/test_arguments.py": (
        "`{}` must be {}.",
        "{} needs the TensorFlow backend.",
        "a number below infinity in the precision of the weights,",
    ),
    "optimizer/test_live_settings.py": (
        "`{}` must be set before the optimizer is built",
    ),
    "optimizer/test_misspelt.py": (
        "SGDPlus must be given arguments that it has.",
        "The setting `learning_rate` must be assigned by its name.",
        "SGDPlus must be called as an optimizer of Keras.",
    ),
    "optimizer/test_registered.py": ("`batch_size` must be an int, or None.",),
    "pending/test_whole_tables.py": ("the model, a regularizer or a loss uses it",),
    "rate/test_find.py": (
        "`{}` must be a number. Received: {}={}. Use 1e-4",
        "find_learning_rate has set learning_rate={}, which suits",
        "find_learning_rate needs a model outside any tf.distribute strategy.",
        "find_learning_rate needs examples for {} updates or more.",
    ),
    "rate/test_linear_decay.py": ("LinearDecay must be the only callback",),
    "rule/test_capped_runs.py": ("With `max_loss_fraction` no loss must be below",),
    "rule/test_overrides.py": ("The per-example loop computes SGD's own update rule.",),
    "step/test_batch_checks.py": ("The batch that SGDPlus received: {}.",),
    "step/test_model_checks.py": (
        "A variable must not be assigned inside a branch or loop of the model",
    ),
    "step/test_xla_choice.py": ('Give the layers around it dtype="float32".',),
    "trainer/test_divergence.py": (
        "a single bad example: SGDPlus(..., nonfinite=",
        "the rate is per example, and one for batches of {} is {} times too",
    ),
    "trainer/test_no_progress.py": ("an output that is stuck: {} passes hardly any",),
}


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module, with {} for what is filled in; docstrings are none."""
    skipped = pieces_of_f_strings(tree)
    skipped |= {id(n.value) for n in ast.walk(tree) if _is_docstring(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = (getattr(v, "value", "{}") for v in node.values)
            yield "".join(v if isinstance(v, str) else "{}" for v in values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in skipped:
                yield node.value


def _texts_below(*folders: Path) -> set[str]:
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    return {text for path in paths for text in _texts(ast.parse(path.read_text()))}


@functools.cache
def written() -> set[str]:
    """The messages of the package."""
    found = _texts_below(PACKAGE)
    return {t for t in found if " Received: " in t or _is_sentence(t)}


def _is_sentence(text: str) -> bool:
    # Advice that is filled into another message begins with "Use" or "Write", and the
    # end of one that is put together with a full stop; lists of names have lines.
    is_long = len(text) > MIN_LENGTH and text.count(" ") > 9
    return (
        is_long and not text.startswith(("Use ", "Write ", ". ")) and "\n" not in text
    )


@functools.cache
def quoted() -> set[str]:
    """What tests look for in messages: their texts, cut where a pattern is open."""
    folders = [p for p in (ROOT / "tests").iterdir() if p.name != "project"]
    found = set()
    for text in _texts_below(*folders):
        for piece in re.split(r"\||\{\}|\.\*|\(\?s\)|\\d\+", text):
            plain = re.sub(r"\\(.)", r"\1", piece).strip()
            if len(plain) >= MIN_QUOTE and " " in plain:
                found.add(plain)
    return found


def untested(messages: set[str]) -> list[str]:
    """Messages that no test quotes, and that no line above names."""
    named = tuple(start for starts in FILLED_IN.values() for start in starts)
    left = [text for text in messages if not text.startswith(named)]
    return [text for text in left if not any(quote in text for quote in quoted())]


def test_every_message_has_a_test() -> None:
    assert len(written()) > 80
    assert untested(written()) == []


def test_a_new_message_would_be_found() -> None:
    source = (
        'def f(x):\n    """No."""\n    raise ValueError(f"{x} is wrong. Received: {x}")'
    )
    found = list(_texts(ast.parse(source)))
    assert found == ["{} is wrong. Received: {}"]
    assert untested(set(found)) == found


@pytest.mark.parametrize("path", FILLED_IN)
def test_every_line_is_a_message_and_names_a_test(path: str) -> None:
    assert (ROOT / "tests" / path).exists()
    for start in FILLED_IN[path]:
        assert any(text.startswith(start) for text in written()), start


PAIRS = (("(", ")"), ("[", "]"), ("<", ">"))


def flaws(text: str) -> list[str]:
    """Signs that something was left open in a message, or never filled in."""
    found = [quote for quote in '`"' if text.count(quote) % 2]
    found += [a + b for a, b in PAIRS if text.count(a) != text.count(b)]
    words = re.findall(r"%[sdr]\b|\bTODO\b|\b(?:with|and|of) [mnk]\b", text)
    return found + words


def test_no_message_is_left_open() -> None:
    texts = {
        text
        for text in _texts_below(PACKAGE)
        if " " in text and "\n" not in text and not text.startswith("No registered")
    }
    joined = {t.replace(" >= ", " ").replace("->", "") for t in texts}
    assert {t: flaws(t) for t in joined if flaws(t)} == {}


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("Use `fit(x, y).", "`"),
        ('Use order="given.', '"'),
        ("Write fit(x.", "()"),
        ("Received: x with m and y with n.", "with m"),
        ("Received: %s.", "%s"),
    ],
)
def test_an_open_message_would_be_found(text: str, sign: str) -> None:
    assert sign in flaws(text)
