"""The function that `fit` calls for each batch: Keras's own, with checks around it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _compilations as compilations
from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._advice import notices
from keras_sgd_plus._fit import fits
from keras_sgd_plus._forms import tracing
from keras_sgd_plus._private import keras_trainer, xla
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor
from keras_sgd_plus._report import channel, records
from keras_sgd_plus._rule import ours
from keras_sgd_plus._rule.rule import compiled_for

_MAX_KEPT = 8  # compiled functions, each for other settings


class TrainFunction:
    """Keras's train function, kept up with the settings of a live optimizer.

    Keras traces its function once and keeps it, so it would ignore a momentum that a
    callback assigns. And an error that a graph raises would reach the user as a
    `tf.errors.OpError`.

    Attributes:
        of_keras: Keras's own function, which this one calls.

    Args:
        model: whose train function it is.
        optimizer: the SGDPlus.
        function: as Keras made it.
        earlier: the train function before: what was compiled for other settings of the
            same optimizer is kept, should these come back.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        function: Any,
        earlier: TrainFunction | None = None,
    ) -> None:
        self._model: Any = model
        self.optimizer = optimizer
        self.of_keras = function
        self._settings = _settings(optimizer)
        kept: list[Any] = []
        if earlier is not None and earlier.optimizer is optimizer:
            kept = earlier.kept
        others = [(s, f) for s, f in kept if s != self._settings]
        self.kept = [*others, (self._settings, function)][-_MAX_KEPT:]
        self.forward: FastForward | None = None
        self._was_called = False

    def is_stale(self, optimizer: Optimizer) -> bool:
        """Whether it was traced for other settings, or another optimizer."""
        known = self.optimizer, self._settings
        return known != (optimizer, _settings(optimizer))

    def kept_for(self, optimizer: Optimizer) -> Any:
        """Keras's function for the settings of now, or None if there is none yet."""
        if optimizer is not self.optimizer:
            return None
        settings = _settings(optimizer)
        return next((f for s, f in self.kept if s == settings), None)

    def __call__(self, iterator: Iterator[Structure]) -> dict[str, Tensor] | None:
        if inspect.isgenerator(iterator):
            replicas.check_train_on_batch(self._model)
        if self.forward is not None:
            is_spent = self.forward(iterator)
            if self.forward.has_arrived:
                self.forward = None
            if is_spent:
                return self._model.get_metrics_result()
        ours.refuse_hooks(self._model.optimizer)
        ours.refuse_waiting(self._model.optimizer)
        if self.is_stale(self.optimizer):
            self._model.make_train_function()
            return self._model.train_function(iterator)
        lost_workers = replicas.lost_workers(self._model.distribute_strategy)
        run = fits.of(self._model)
        place = None if run is None else run.take_place()
        with channel.watched(self.optimizer, place, run), lost_workers:
            try:
                return self._called(iterator)
            except tf.errors.OutOfRangeError as error:  # the end of the data, to Keras
                compilations.check_end(error)
                raise

    def _called(self, iterator: Iterator[Structure]) -> dict[str, Tensor] | None:
        if self._was_called:
            return self.of_keras(iterator)
        compilations.prepare()
        with notices.watched_first_call(self._model, self.optimizer):
            logs = self._called_first(iterator)
        self._was_called = True
        compilations.admit()
        return logs

    def _called_first(self, iterator: Iterator[Structure]) -> dict[str, Tensor] | None:
        # Where XLA refuses the loop, the call is made again, on the same batches.
        model: Any = self._model
        steps = model.steps_per_execution
        hands_over = keras_trainer.hands_over_batches(steps)
        may_choose = (
            self.optimizer.jit_compile == "auto"
            and not model.jit_compile
            and not isinstance(iterator, tf.distribute.DistributedIterator)
        )
        if model.run_eagerly or not (may_choose or hands_over):
            return self.of_keras(iterator)
        batches = _Batches(iterator, steps, hands_over)

        def call() -> dict[str, Tensor] | None:
            return batches.given_to(self.of_keras)

        def again() -> dict[str, Tensor] | None:
            model.make_train_function(force=True)
            self.of_keras = model.train_function.of_keras
            return call()

        return xla.unless_refused(model, may_choose, call, again)

    def __getattr__(self, name: str) -> Any:
        # A copy is asked before it has attributes: `self.of_keras` would come here.
        return getattr(object.__getattribute__(self, "of_keras"), name)


def _settings(optimizer: Optimizer) -> tuple[object, ...]:
    fixed = compiled_for(optimizer, tracing.is_switched_off())
    return (*fixed, records.wanted_of(optimizer))


class _Batches:
    """The batches of one call of a train function, which may be made again.

    Args:
        iterator: over batches, as Keras gives it to a train function.
        most: batches that a call takes.
        are_handed_over: whether Keras takes them out of the iterator by itself, and
            hands them to the train step one by one.
    """

    def __init__(self, iterator: Any, most: int, are_handed_over: bool) -> None:
        self._iterator, self._are_handed_over = iterator, are_handed_over
        self._batches = list(itertools.islice(iterator, most))

    def given_to(self, function: Callable[..., Any]) -> dict[str, Tensor] | None:
        """Calls Keras's train function with these batches; gives the last logs."""
        kinds = (tf.data.Iterator, tf.distribute.DistributedIterator)
        if not isinstance(self._iterator, kinds):
            return function(iter(self._batches))
        if not self._batches:
            return function(self._iterator)  # which says that the data have ended
        if not self._are_handed_over:
            # An iterator of the same type: later calls run the same trace.
            spec, batches = self._iterator.element_spec, self._batches
            data = tf.data.Dataset.from_generator(
                lambda: iter(batches), output_signature=spec
            )
            return function(iter(data))

        # Traced with the shapes that the data set promises, not with those of the first
        # batch: one of another size would be traced and compiled anew.
        def step(batch: Structure) -> Structure:
            return function(iter([batch]))

        traced: Any = tf.function(step, autograph=False)
        traced = traced.get_concrete_function(self._iterator.element_spec)
        logs: Any = None
        for batch in self._batches:
            logs = traced(batch)
        return logs


class FastForward:
    """Takes batches from the data without training, up to where a run was left.

    Args:
        before: batches of earlier epochs that come from the same iterator.
        batches: batches of this epoch.
        per_call: batches that Keras expects each call to take.
        begin: called with the first batch of this epoch that is taken.
    """

    def __init__(
        self,
        before: int,
        batches: int,
        per_call: int,
        begin: Callable[[Structure], None],
    ) -> None:
        self._before, self._batches = before, batches
        self._per_call, self._begin = per_call, begin
        self._has_begun = False

    def __call__(self, iterator: Iterator[Structure]) -> bool:
        """Whether the call was used up, and nothing is to be trained in it."""
        for _ in range(self._before):
            next(iterator, None)
        self._before = 0
        is_spent = not self.has_arrived
        for _ in range(min(self._per_call, self._batches)):
            data = next(iterator, None)  # the last call may find fewer
            if not self._has_begun:
                self._begin(data)
            self._has_begun = True
            self._batches -= 1
        return is_spent

    @property
    def has_arrived(self) -> bool:
        """Whether the next call trains."""
        return self._batches <= 0
