"""docs/api.md lists the public names as they are in the code."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

import keras_sgd_plus
from keras_sgd_plus import ExampleLog, SGDPlus
from tests.support import api_page

STORED = api_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_that_of_the_code() -> None:
    assert api_page.page() == STORED, "run: python -m tests.support.api_page"


@pytest.mark.parametrize("name", list(api_page.public()))
def test_signature_is_python_with_the_defaults_of_the_code(name: str) -> None:
    (shown,) = re.findall(rf"^## {name}\n\n```text\n(.*?)\n```", STORED, re.M | re.S)
    (function,) = ast.parse(f"def {shown}: ...").body
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    names = [argument.arg for argument in given.args + given.kwonlyargs]
    with_default = given.args[len(given.args) - len(given.defaults) :]
    defaults: dict[str, Any] = {
        argument.arg: ast.literal_eval(default)
        for argument, default in [
            *zip(with_default, given.defaults, strict=True),
            *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        ]
        if default is not None
    }
    parameters = inspect.signature(getattr(keras_sgd_plus, name)).parameters
    expected = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert names == expected
    none = inspect.Parameter.empty
    in_code = {n: p.default for n, p in parameters.items() if n in expected}
    assert defaults == {n: d for n, d in in_code.items() if d is not none}
    by_name = [n for n in expected if parameters[n].kind.name == "KEYWORD_ONLY"]
    assert [a.arg for a in given.kwonlyargs] == by_name


def test_members_are_those_that_keras_lacks() -> None:
    """Callbacks' hooks and overridden methods are for Keras to call."""
    text = api_page.entry("SGDPlus", SGDPlus)
    assert "- `train_step(" in text and "- `skipped_examples(" in text
    assert "- `apply" not in text and "- `get_config" not in text
    text = api_page.entry("ExampleLog", ExampleLog)
    assert "- `start(model)`" in text and "- `loss`, a property" in text
    assert "- `on_" not in text


def test_signatures() -> None:
    def short(self: Any, a: int, *, b: Any = "x", **kwargs: Any) -> str:
        return str((self, a, b, kwargs))

    assert api_page.signature("f", short) == 'f(a: int, *, b="x") -> str'

    def long(
        first_of_all: float = 0.1, second_of_all: str = "second", third: bool = False
    ) -> None:
        del first_of_all, second_of_all, third

    assert api_page.signature("a_long_name", long).splitlines() == [
        "a_long_name(",
        "    first_of_all: float = 0.1,",
        '    second_of_all: str = "second",',
        "    third: bool = False,",
        ")",
    ]
