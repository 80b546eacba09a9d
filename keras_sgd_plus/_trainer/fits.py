"""The calls of `fit` that run now, and what is said at the ends of epochs and runs."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from keras_sgd_plus._nonfinite import places
from keras_sgd_plus._private.types import Model
from keras_sgd_plus._records import recorders
from keras_sgd_plus._trainer import bypass, divergence, schedules
from keras_sgd_plus._trainer.optimizers import per_example

_runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()


class Run:
    """One call of `fit`.

    Args:
        model: the model, whatever its optimizer.
        arguments: of `fit`, by name.
    """

    def __init__(self, model: Model, arguments: Mapping[str, Any]) -> None:
        self._model, self._arguments = model, arguments
        self._optimizer = per_example(getattr(model, "optimizer", None))
        self._epochs = 0  # that have begun
        self._is_new = False  # whether the run began with the optimizer's first update
        self._was_recorded = self._is_recorded()

    def begin_epoch(self) -> None:
        """Notes that an epoch begins; the one before it has ended."""
        if self._optimizer is not None and self._optimizer.nonfinite != "propagate":
            places.begin_epoch(self._optimizer, is_first=self._epochs == 0)
        if self._optimizer is not None and self._epochs == 0:
            self._is_new = not _iterations(self._optimizer)
        elif self._epochs == 1:
            self._end_first_epoch()
        self._epochs += 1

    def end(self) -> None:
        """Says what `fit` has found, once it has returned."""
        bypass.warn_of(self._model)
        if self._optimizer is None or not bypass.is_engaged(self._optimizer):
            return
        if self._epochs == 1:
            self._end_first_epoch()
        _say(divergence.report(self._model, self._optimizer, self._arguments))

    def stop_records(self) -> None:
        """Ends records that a callback has started; it hears nothing of an error."""
        if not self._was_recorded and self._is_recorded():
            recorders.stop(self._optimizer)

    def _is_recorded(self) -> bool:
        found = self._optimizer
        return found is not None and recorders.settings(found) is not None

    def _end_first_epoch(self) -> None:
        if self._optimizer is None or not self._is_new:
            return
        params = getattr(getattr(self._model, "history", None), "params", None) or {}
        epochs = (params.get("epochs") or 1) - (
            self._arguments.get("initial_epoch") or 0
        )
        updates = _iterations(self._optimizer)
        batches = params.get("steps")
        _say(schedules.report(self._optimizer, updates, batches, epochs))


@contextlib.contextmanager
def running(model: Model, arguments: Mapping[str, Any]) -> Iterator[Run]:
    """Keeps a `Run` for a model until the block is left."""
    run = _runs[model] = Run(model, arguments)
    try:
        yield run
    finally:
        _runs.pop(model, None)
        run.stop_records()


def of(model: Model) -> Run | None:
    """The `fit` of a model that runs now."""
    return _runs.get(model)


def models() -> list[Model]:
    """The models that are being fitted, in any thread."""
    return list(_runs)


def _iterations(optimizer: Any) -> int:
    return int(optimizer.iterations.numpy())


def _say(text: str | None) -> None:
    if text is not None:
        warnings.warn(text)
