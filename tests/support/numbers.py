"""The numbers of a rule, as a compiled step hands them to it."""

from __future__ import annotations

from typing import Any

from tests.support.internals import rule


def numbers_of(optimizer: Any) -> dict[str, Any]:
    """By name, () float64, as the optimizer is set now."""
    return rule.by_name(rule.numbers_of(optimizer, are_constants=True))
