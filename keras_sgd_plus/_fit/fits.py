"""The calls of `fit` that run now, and what is said at the ends of epochs and runs.

What belongs to a `fit` is known from that `fit`: it calls a callback of ours before
each of its batches. For callbacks of users may train on other batches in between, or
reset metrics.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_sgd_plus._advice import learning, notices
from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._report import records
from keras_sgd_plus._rule.ours import per_example

_runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class Run:
    """One call of `fit`.

    Args:
        model: the model, whatever its optimizer.
        arguments: of `fit`, by name.
        outer: the run in which a callback has called this `fit`, or None.

    Attributes:
        number: of its own, in this process.
        is_nested: whether a callback of another `fit` of the model has called this one.
    """

    def __init__(
        self, model: Model, arguments: Mapping[str, Any], outer: Run | None
    ) -> None:
        self._model, self._arguments = model, arguments
        self.number, self.is_nested = next(_numbers), outer is not None
        self._optimizer = per_example(getattr(model, "optimizer", None))
        self._place: tuple[int, int] | None = None
        self._is_first_epoch = True
        # Whether the run began with the optimizer's first update.
        self._is_new = self._optimizer is not None and not _iterations(self._optimizer)
        self._watch = None
        if self._is_new:
            self._watch = learning.Watch(model, self._optimizer)
        self._num_begun = 0  # batches
        self._was_recorded = self._is_recorded()
        self._at_end: list[Callable[[], None]] = []

    def trains(self, optimizer: Optimizer) -> bool:
        """Whether it trains with this optimizer."""
        return self._optimizer is optimizer

    def begin_batch(self, epoch: int, batch: int) -> None:
        """Notes that the next call of the train function is one of this `fit`."""
        self._num_begun += 1
        if self._num_begun == 2:
            notices.warn_of_bypass(
                self._model
            )  # after the first batch, and not after all
        if self._watch is not None:
            self._watch.begin_batch()
        self._place = epoch, batch

    def take_place(self) -> tuple[int, int, int] | None:
        """Number, epoch and batch of the call of the train function that begins.

        None if that is no call of this `fit`, but of a callback.
        """
        place, self._place = self._place, None
        return None if place is None else (self.number, *place)

    def end_epoch(self) -> None:
        """Looks at the run at the end of an epoch."""
        if self._watch is not None:
            _say(self._watch.report(self._arguments))
        if self._is_first_epoch:
            self._is_first_epoch = False
            self._end_first_epoch()

    def end(self) -> None:
        """Says what `fit` has found, once it has returned."""
        notices.warn_of_bypass(self._model)
        if self._optimizer is None or not notices.is_engaged(self._optimizer):
            return
        _say(learning.report_divergence(self._model, self._optimizer, self._arguments))

    def at_end(self, function: Callable[[], None]) -> None:
        """Calls a function when `fit` ends, by an error or an interrupt, too."""
        self._at_end.append(function)

    def leave(self) -> None:
        """Called when `fit` ends in whatever way."""
        # Records that a callback has started: it hears nothing of an error.
        if not self._was_recorded and self._is_recorded():
            records.stop_recording(self._optimizer)
        for function in self._at_end:
            function()

    def _is_recorded(self) -> bool:
        found = self._optimizer
        return found is not None and records.wanted_of(found) is not None

    def _end_first_epoch(self) -> None:
        found = self._optimizer
        if found is None or not self._is_new or not notices.is_engaged(found):
            return
        params = getattr(getattr(self._model, "history", None), "params", None) or {}
        epochs = (params.get("epochs") or 1) - (
            self._arguments.get("initial_epoch") or 0
        )
        updates = _iterations(self._optimizer)
        _say(notices.report_schedule(self._optimizer, updates, epochs))


class Watcher(keras.callbacks.Callback):
    """Tells a `Run` which calls of the train function are those of its `fit`.

    It stands last in the list of callbacks, so that nobody else is asked between it and
    the batch.
    """

    async_safe = True  # Keras need not wait for it at the end of a batch

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run, self._epoch = run, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        del logs
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes that the call for this batch comes next."""
        del logs
        self._run.begin_batch(self._epoch, batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Lets the run look at the epoch."""
        del epoch, logs
        self._run.end_epoch()


@contextlib.contextmanager
def running(model: Model, arguments: Mapping[str, Any]) -> Iterator[Run]:
    """Keeps a `Run` for a model until the block is left.

    A callback may call `fit` of the same model: then the outer one goes on after it.
    """
    outer = _runs.get(model)
    run = _runs[model] = Run(model, arguments, outer)
    try:
        yield run
    finally:
        if outer is None:
            _runs.pop(model, None)
        else:
            _runs[model] = outer
        run.leave()


@contextlib.contextmanager
def watched(run: Run, callbacks: Any) -> Iterator[Any]:
    """The callbacks of a `fit` with a `Watcher` behind them.

    Args:
        run: the run of that `fit`.
        callbacks: as `fit` takes them. A `CallbackList` gets the watcher for a while.
    """
    watcher = Watcher(run)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        yield [*keras.tree.flatten(callbacks or []), watcher]
        return
    callbacks.callbacks.append(watcher)
    try:
        yield callbacks
    finally:
        callbacks.callbacks = [c for c in callbacks.callbacks if c is not watcher]


def of(model: Model) -> Run | None:
    """The `fit` of a model that runs now."""
    return _runs.get(model)


def is_nested(optimizer: Optimizer) -> bool:
    """Whether a `fit` with this optimizer runs inside a callback of another one."""
    return any(run.is_nested and run.trains(optimizer) for run in _runs.values())


def models() -> list[Model]:
    """The models that are being fitted, in any thread."""
    return list(_runs)


def _iterations(optimizer: Any) -> int:
    return int(keras_optimizer.raw_iterations(optimizer).numpy())


def _say(text: str | None) -> None:
    if text is not None:
        warnings.warn(text)
