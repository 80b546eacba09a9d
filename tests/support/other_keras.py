"""A Keras or TensorFlow in which one private name is not as it was.

Sources are rewritten while they are imported, so that the library agrees with itself,
as a later release would. `use` is called before the library is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

KERAS = r"keras\.src\."
BACKEND = r"keras\.src\.backend\.tensorflow\.(ops\.)?(nn|numpy|random)$"
NEW = "_renamed"  # what follows a name that was changed


@dataclass(frozen=True)
class Change:
    """How a library differs.

    Attributes:
        name: that is changed.
        modules: pattern of the names of those that are rewritten.
        edit: from the name of one and its old text to the new one.
    """

    name: str
    modules: str
    edit: Callable[[str, str], str]


def renamed(name: str, modules: str = KERAS, pattern: str | None = None) -> Change:
    """Another name, wherever the old one stands.

    Args:
        name: the old one.
        modules: in which it stands.
        pattern: of the text, where the word alone would match too much.
    """
    old = pattern or rf"\b{re.escape(name)}\b"
    return Change(name, modules, lambda _, text: re.sub(old, rf"\g<0>{NEW}", text))


def longer(name: str, modules: str = KERAS, is_method: bool = True) -> Change:
    """One parameter more, which comes first, and which all callers give."""
    call = rf"\.{name}\(" if is_method else rf"(?<!def )(?<!\w){name}\("

    def edit(_: str, text: str) -> str:
        text = re.sub(call, r"\g<0>None, ", text)
        text = re.sub(rf"\.{name},(?=\s)", r"\g<0> None,", text)  # called by another
        if is_method:
            return re.sub(rf"\bdef {name}\(\s*self", r"\g<0>, another", text)
        return re.sub(rf"\bdef {name}\(", r"\g<0>another, ", text)

    return Change(name, modules, edit)


def function_renamed(name: str) -> Change:
    """Another name for a function of the backend."""
    definition = rf"(?m)^def {name}(?=\()"
    call = rf"\bbackend(\.ops)?\.(nn|numpy|random)\.{name}\b"

    def edit(module: str, text: str) -> str:
        old = definition if re.match(BACKEND, module) else call
        return re.sub(old, rf"\g<0>{NEW}", text)

    return Change(name, KERAS, edit)


def function_longer(name: str) -> Change:
    """One parameter more for a function of the backend, with a default."""
    more = f"""
shorter_{name} = {name}
def {name}(*args, another=None, **kwargs):
    return shorter_{name}(*args, **kwargs)
"""

    def edit(_: str, text: str) -> str:
        return text + more if re.search(rf"(?m)^def {name}\(", text) else text

    return Change(name, BACKEND, edit)


def use(change: Change) -> Sequence[str]:
    """Imports libraries changed from now on; the list of modules that were, so far."""
    found: list[str] = []

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType | None:
            path = self.get_filename(fullname)
            text = self.get_data(path).decode()
            new = change.edit(fullname, text)
            if new == text:
                return super().get_code(fullname)
            found.append(fullname)
            return compile(new, path, "exec", dont_inherit=True)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(
            self, fullname: str, path: Any, target: ModuleType | None = None
        ) -> Any:
            if not re.match(change.modules, fullname):
                return None
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.origin and spec.origin.endswith(".py"):
                spec.loader = Loader(fullname, spec.origin)
            return spec

    sys.meta_path.insert(0, Finder())
    return found


def move(old: str, new: str) -> None:
    """Moves a module that is imported; whoever has imported it keeps it.

    Some modules are imported late, from their package, which keeps them.
    """
    package, _, word = old.rpartition(".")
    above = sys.modules[package]
    module = sys.modules.get(old) or importlib.import_module(new)  # moved by now
    sys.modules.setdefault(new.rpartition(".")[0], ModuleType("moved"))
    sys.modules[new] = module
    sys.modules[old] = None  # type: ignore[assignment]  # an import of it fails
    if hasattr(above, word) and package.startswith("keras.src.backend."):
        delattr(above, word)
