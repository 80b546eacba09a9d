"""Tiers of a table: `pytest` runs the rows that are named, `-m matrix` the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def matrix(*values: Any) -> list[Any]:
    """Values of one parameter that run with `-m matrix` alone."""
    return [pytest.param(value, marks=pytest.mark.matrix) for value in values]


def matrix_rows(*rows: tuple[Any, ...]) -> list[Any]:
    """Rows of several parameters that run with `-m matrix` alone."""
    return [pytest.param(*row, marks=pytest.mark.matrix) for row in rows]


def tiered_keys(table: Iterable[str], *default: str) -> list[Any]:
    """The keys of a table as parameters; those in `default` run by default."""
    return [pytest.param(k, marks=m) for k, m in _marked(table, default)]


def tiered_rows(
    table: Mapping[str, Any], *default: str, unpack: bool = False
) -> list[Any]:
    """The values of a table as parameters, its keys as their ids.

    Args:
        default: keys of the rows that run by default.
        unpack: whether a row is a tuple of several parameters.
    """
    return [
        pytest.param(*(table[k] if unpack else (table[k],)), id=k, marks=m)
        for k, m in _marked(table, default)
    ]


def _marked(table: Iterable[str], default: tuple[str, ...]) -> list[Any]:
    keys = list(table)
    unknown = set(default) - set(keys)
    assert not unknown, unknown
    return [(k, () if k in default else (pytest.mark.matrix,)) for k in keys]
