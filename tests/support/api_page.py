"""`python -m tests.support.api_page`: writes docs/api.md from the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import keras

import keras_sgd_plus
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "api.md"
WIDTH = 88
HEAD = """\
# Public names

This page is for readers who look up a name or an argument. The other pages explain,
this one lists: each class and function with its signature, the first paragraph of its
docstring, and its own methods and properties. `help(name)` has the rest: every argument
with its unit, the errors, an example. Methods that Keras defines, or that Keras calls,
are left out.

`python -m tests.support.api_page` writes this page from the code.
"""
CONSTANTS = {"__version__": "The version of the package, a string."}
_BASES = ("keras.optimizers.SGD", "keras.callbacks.Callback", "keras.utils.PyDataset")
# An annotation is shown if it consists of these and says more than "Any".
_SHOWN = {
    "...",
    "Any",
    "FoundLearningRate",
    "None",
    "Skipped",
    "bool",
    "dict",
    "float",
    "int",
    "keras.Model",
    "list",
    "np.ndarray",
    "str",
    "tuple",
}


def public() -> dict[str, Any]:
    """The public classes and functions by name, in alphabetical order."""
    found = {
        name: value
        for name, value in vars(keras_sgd_plus).items()
        if inspect.isclass(value) or inspect.isfunction(value)
        if not name.startswith("_")
    }
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _annotation(given: Any) -> str:
    """The text of an annotation, or "" for one that is not shown."""
    if given is inspect.Parameter.empty or given is None:
        return ""
    text = getattr(given, "__forward_arg__", given)  # that of a named tuple
    is_shown = set(re.findall(r"[\w.]+", str(text))) <= _SHOWN
    return str(text) if is_shown and text not in ("Any", "None") else ""


def _parameter(parameter: inspect.Parameter) -> str:
    annotation = _annotation(parameter.annotation)
    text = f"{parameter.name}: {annotation}" if annotation else parameter.name
    if parameter.default is inspect.Parameter.empty:
        return text
    default = repr(parameter.default).replace("'", '"')
    return f"{text} = {default}" if annotation else f"{text}={default}"


def signature(name: str, called: Callable[..., Any]) -> str:
    """`name(...)`, in one line or with a line per argument.

    Without `self`, `**kwargs`, and annotations that say nothing.
    """
    found = inspect.signature(called)
    arguments, is_by_name = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_by_name:
            arguments.append("*")
            is_by_name = True
        arguments.append(_parameter(parameter))
    returned = _annotation(found.return_annotation)
    end = f") -> {returned}" if returned and not inspect.isclass(called) else ")"
    line = f"{name}({', '.join(arguments)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in arguments), end])


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _is_of_keras(owner: type, name: str) -> bool:
    others = [b for b in owner.__mro__ if not b.__module__.startswith("keras_sgd_plus")]
    return any(name in vars(base) for base in others)


def _members(owner: type) -> list[str]:
    lines = []
    for name, value in vars(owner).items():
        if name.startswith("_") or _is_of_keras(owner, name):
            continue
        if inspect.isfunction(value):
            lines.append(f"- `{signature(name, value)}`: {summary(value)}")
        elif isinstance(value, property) and value.fget:
            lines.append(f"- `{name}`, a property: {summary(value)}")
    return lines


def _settings(owner: type) -> list[str]:
    """Arguments of an optimizer that may be assigned after it is made."""
    if not issubclass(owner, keras.optimizers.Optimizer):
        return []
    # `nesterov` is a plain attribute, which the update reads.
    names = [
        f"`{name}`"
        for name in inspect.signature(owner).parameters
        if name == "nesterov" or inspect.isdatadescriptor(vars(owner).get(name))
    ]
    return [f"Settings that may be assigned on a live optimizer: {', '.join(names)}."]


def _base(owner: type) -> str:
    if dataclasses.is_dataclass(owner):
        return "A frozen dataclass."
    for path in _BASES:
        if issubclass(owner, attrgetter(path.removeprefix("keras."))(keras)):
            return f"A `{path}`."
    return "A named tuple." if issubclass(owner, tuple) else ""


def entry(name: str, owner: Any) -> str:
    """The section on one class or function."""
    if not inspect.isclass(owner):
        text = f"```text\n{signature(name, owner)}\n```\n\n{summary(owner)}"
        return f"## {name}\n\n{text}\n"
    parts = [
        f"## {name}",
        f"```text\n{signature(name, owner)}\n```",
        f"{summary(owner)} {_base(owner)}".strip(),
        *_settings(owner),
        "\n".join(_members(owner)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def page() -> str:
    """The whole page."""
    found = public()
    links = " · ".join(f"[{name}](#{name.lower()})" for name in found)
    parts = [HEAD, f"{links}\n", *(entry(name, each) for name, each in found.items())]
    parts += [f"## `{name}`\n\n{text}\n" for name, text in CONSTANTS.items()]
    return "\n".join(parts)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
