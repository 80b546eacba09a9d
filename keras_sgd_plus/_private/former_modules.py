"""Names under which version 0.1.0 pickled objects.

A pickle names the module of each class. Those of 0.1.0 named modules that are folders
or gone by now. Goes when pickles of 0.1.0 need not load any more.
"""

from __future__ import annotations

import sys
from types import ModuleType


def answer_to(names: dict[str, ModuleType]) -> None:
    """Lets Python find modules of this package under names that have no file.

    Args:
        names: name in the package -> the module that has its classes now.
    """
    package = __name__.split(".")[0]
    for name, module in names.items():
        sys.modules.setdefault(f"{package}.{name}", module)
