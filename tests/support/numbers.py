"""The numbers of a rule, as a compiled step hands them to it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.support.internals import part, rule


def numbers_of(optimizer: Any) -> dict[str, Any]:
    """By name, () float64, as the optimizer is set now."""
    of_rule = rule.all_numbers()
    values = tf.constant(part.on_host(optimizer, of_rule), tf.float64)
    return part.by_name(of_rule, values)
