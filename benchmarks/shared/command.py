"""The command line of a study."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any


def options(
    study: str,
    text: str | None,
    arguments: list[str],
    names: Iterable[str] = (),
    **flags: Any,
) -> Any:
    """What the command line says: its `names`, all if it has none, and its flags.

    Args:
        study: its name, the subcommand.
        text: what `--help` shows: the docstring of the study.
        arguments: of the command line.
        names: what may be named; without any, nothing may.
        flags: their defaults: False for a switch, else a text or None.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {study}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if known := list(names):
        of = f"of {', '.join(known)}; all if none"
        parser.add_argument("names", nargs="*", default=known, help=of)
    for name, default in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, default=default)
    return parser.parse_args(arguments)
