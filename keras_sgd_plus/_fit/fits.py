"""The calls of `fit` that run now: what is known of each, and what is said of it.

Keras tells a callback neither the data nor the other callbacks, and nobody when `fit`
breaks off. So `hooks` keeps a `Run` while Keras's own `fit` runs, which whoever has the
model finds by `of(model)`. What belongs to a `fit` is known from that `fit`: it calls a
callback of ours before each of its batches. For callbacks of users may train on other
batches in between, or reset metrics.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_sgd_plus._advice import learning, notices
from keras_sgd_plus._private import keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._rule.ours import is_ours, per_example

_runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
# List of callbacks -> its `fit`, where that was not wrapped when it was called.
_unwrapped: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class ComesFirst:
    """Base of callbacks that `fit` calls before others, wherever they are listed."""


class Run:
    """One call of `fit`.

    Args:
        model: the model, whatever its optimizer.
        arguments: of `fit`, by name.
        is_nested: whether a callback of another `fit` of the model has called this one.

    Attributes:
        number: of its own, in this process.
        initial_epoch: as for `fit`.
        epoch: that began last.
        callbacks: of the user, in the order in which Keras calls them.
        averages: of the weights, where an `AverageWeights` has made them.
        at_end: closed when `fit` ends, by an error or an interrupt, too.
    """

    def __init__(
        self, model: Model, arguments: Mapping[str, Any], is_nested: bool
    ) -> None:
        self.model, self._arguments, self.is_nested = model, arguments, is_nested
        self.number = next(_numbers)
        self.epoch = self.initial_epoch = arguments.get("initial_epoch") or 0
        self.callbacks: list[Any] = []
        self.averages: Any = None
        self.at_end = contextlib.ExitStack()
        self._optimizer: Any = per_example(getattr(model, "optimizer", None))
        self._place: tuple[int, int, int] | None = None
        self._is_first_epoch = True
        # Whether the run began with the optimizer's first update.
        self._is_new = self._optimizer is not None and not _iterations(self._optimizer)
        self._watch = learning.Watch(model, self._optimizer) if self._is_new else None
        self._num_begun = 0  # batches

    @functools.cached_property
    def data(self) -> keras_trainer.Data | None:
        """What it trains on; asked while it runs, or None."""
        found = keras_trainer.fit_in_progress(self.model)
        return None if found is None else found.data

    def trains(self, optimizer: Optimizer) -> bool:
        """Whether it trains with this optimizer."""
        return self._optimizer is optimizer

    def begin_batch(self, batch: int) -> None:
        """Notes that the next call of the train function is one of this `fit`."""
        self._num_begun += 1
        if self._num_begun == 2:  # after the first batch, and not after all
            notices.warn_of_bypass(self.model)
        if self._watch is not None:
            self._watch.begin_batch()
        self._place = self.number, self.epoch, batch

    def take_place(self) -> tuple[int, int, int] | None:
        """Number, epoch and batch of the call of the train function that begins.

        None if that is no call of this `fit`, but of a callback.
        """
        place, self._place = self._place, None
        return place

    def end_epoch(self) -> None:
        """Looks at the run at the end of an epoch."""
        if self._watch is not None:
            _say(self._watch.report(self._arguments))
        if self._is_first_epoch:
            self._is_first_epoch = False
            self._end_first_epoch()

    def end(self) -> None:
        """Says what `fit` has found, once it has returned."""
        notices.warn_of_bypass(self.model)
        if self._optimizer is None or not notices.is_engaged(self._optimizer):
            return
        _say(learning.report_divergence(self.model, self._optimizer, self._arguments))

    def _end_first_epoch(self) -> None:
        found = self._optimizer
        if found is None or not self._is_new or not notices.is_engaged(found):
            return
        params = getattr(getattr(self.model, "history", None), "params", None) or {}
        epochs = (params.get("epochs") or 1) - self.initial_epoch
        _say(notices.report_schedule(found, _iterations(found), epochs))


class Watcher(keras.callbacks.Callback):
    """Tells a `Run` which calls of the train function are those of its `fit`.

    It stands last in the list of callbacks, so that nobody else is asked between it and
    the batch.
    """

    async_safe = True  # Keras need not wait for it at the end of a batch

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes the epoch."""
        self._run.epoch = epoch

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Notes that the call for this batch comes next."""
        self._run.begin_batch(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Lets the run look at the epoch."""
        self._run.end_epoch()


@contextlib.contextmanager
def running(
    model: Model, arguments: Mapping[str, object]
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Keeps a `Run` for a model until the block is left.

    A callback may call `fit` of the same model: then the outer one goes on after it.

    Args:
        model: whatever its optimizer.
        arguments: of `fit`, by name.

    Yields:
        The run, and the arguments for Keras's own `fit`, with its callbacks in order.
    """
    outer = _runs.get(model)
    run = _runs[model] = Run(model, arguments, outer is not None)
    try:
        with run.at_end:
            yield run, {**arguments, **_callbacks(run, arguments.get("callbacks"))}
    finally:
        if outer is None:
            _runs.pop(model, None)
        else:
            _runs[model] = outer


def _callbacks(run: Run, given: object) -> dict[str, Any]:
    # The argument of `fit` with the callbacks that come first in front, and a `Watcher`
    # behind all if the optimizer is ours; {} where both make no difference. A user's
    # `CallbackList` is changed itself, and has the watcher for a while.
    is_list = isinstance(given, keras.callbacks.CallbackList)
    listed = given.callbacks if is_list else keras.tree.flatten(given or [])
    run.callbacks = _in_order(listed)
    watchers = [Watcher(run)] if is_ours(getattr(run.model, "optimizer", None)) else []
    arranged = [*run.callbacks, *watchers]
    if arranged == listed:
        return {}
    if not is_list:
        return {"callbacks": arranged}
    given.callbacks = arranged

    def take_out() -> None:
        given.callbacks = [c for c in given.callbacks if c not in watchers]

    run.at_end.callback(take_out)
    return {}


def _in_order(
    callbacks: list[keras.callbacks.Callback],
) -> list[keras.callbacks.Callback]:
    return sorted(callbacks, key=lambda c: not isinstance(c, ComesFirst))


def begun(model: Model) -> Run | None:
    """The `fit` that tells callbacks that it begins, or None in a loop by hand.

    `model.fit(callbacks=[AverageWeights()])` is looked up before the first callback
    wraps it.
    """
    found = None if model in _runs else keras_trainer.fit_in_progress(model)
    return of(model) if found is None else _of_unwrapped(model, found)


def _of_unwrapped(model: Model, found: keras_trainer.Fit) -> Run:
    # The run of a `fit` that was not wrapped when it was called. It is made now, and
    # nobody is told of its end.
    if found.callbacks not in _unwrapped:
        run = Run(model, {"initial_epoch": found.initial_epoch}, False)
        run.callbacks, run.data = _in_order(found.callbacks.callbacks), found.data
        _unwrapped[found.callbacks] = run
        # A new list: Keras is walking along the old one.
        found.callbacks.callbacks = [*run.callbacks]
    return _unwrapped[found.callbacks]


def of(model: Model) -> Run | None:
    """The `fit` of a model that runs now."""
    return _runs.get(model)


def with_optimizer(optimizer: Optimizer) -> Run | None:
    """The `fit` that trains with an optimizer now, first one inside a callback."""
    found = [run for run in _runs.values() if run.trains(optimizer)]
    return max(found, key=lambda run: run.is_nested, default=None)


def models() -> list[Model]:
    """The models that are being fitted, in any thread."""
    return list(_runs)


def _iterations(optimizer: Optimizer) -> int:
    return int(keras_optimizer.raw_iterations(optimizer).numpy())


def _say(text: str | None) -> None:
    if text is not None:
        warnings.warn(text)
