"""The calls of `fit` that run now, and what is said at their ends."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

from keras_sgd_plus._private.types import Model
from keras_sgd_plus._trainer import bypass

_runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()


class Run:
    """One call of `fit`.

    Args:
        model: the model, whatever its optimizer.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def end(self) -> None:
        """Says what `fit` has found, once it has returned."""
        bypass.warn_of(self._model)


@contextlib.contextmanager
def running(model: Model) -> Iterator[Run]:
    """Keeps a `Run` for a model until the block is left."""
    run = _runs[model] = Run(model)
    try:
        yield run
    finally:
        _runs.pop(model, None)


def models() -> list[Model]:
    """The models that are being fitted, in any thread."""
    return list(_runs)
