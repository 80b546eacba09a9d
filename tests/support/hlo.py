"""Reads the optimized HLO of a model's first batch."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tensorflow as tf

from tests.support.internals import compiled, xla


def optimized(monkeypatch: pytest.MonkeyPatch, model: Any, x: Any, y: Any) -> str:
    """The text of the compiled function that a train step on x and y runs."""
    found: list[str] = []
    find = compiled.found_by_xla

    def look(model: Any, function: Any, arguments: Any) -> Any:
        with tf.init_scope():
            specs = [tf.TensorSpec(a.shape, a.dtype) for a in arguments]
            compiler = function.experimental_get_compiler_ir(*specs)
            found.append(compiler(stage="optimized_hlo"))
        return find(model, function, arguments)

    # Force a trial, which hands over the function.
    monkeypatch.setattr(xla, "surely_takes", lambda graph: False)
    monkeypatch.setattr(compiled, "found_by_xla", look)
    model.optimizer.train_step(model, (tf.constant(x), tf.constant(y)))
    (text,) = found
    return text


def loop_bodies(
    monkeypatch: pytest.MonkeyPatch, model: Any, x: Any, y: Any
) -> list[str]:
    """The computations that are bodies of loops, as text, after one train step."""
    text = optimized(monkeypatch, model, x, y)
    names = set(re.findall(r"body=%([\w.\-]+)", text))
    bodies = [c for c in text.split("\n\n") if c.lstrip("%").split(" ")[0] in names]
    assert bodies
    return bodies


def copies(bodies: list[str], least: int) -> list[str]:
    """Shapes of tensors that every turn copies, of `least` entries or more."""
    shapes = re.findall(r" = \w+\[([\d,]+)\]\S* copy\(", "\n".join(bodies))
    return [s for s in shapes if _entries(s) >= least]


def _entries(shape: str) -> int:
    count = 1
    for size in shape.split(","):
        count *= int(size)
    return count
