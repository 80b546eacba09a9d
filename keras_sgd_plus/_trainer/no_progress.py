"""A loss that did not fall: training runs, and the model does not learn.

Each loss is that of an example before its own update. So the first hundred of them are
what the model lost before it learned, and the last ones what it has learned. A few
updates with a rate that is too high may also leave a model whose outputs pass no
gradient back: then the first hundred losses are as high as the last, and no weight
changes any more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._records import progress
from keras_sgd_plus._records.progress import Losses
from keras_sgd_plus._trainer import causes

MIN_UPDATES = 1_000
_LAST = 0.1  # part of the updates that is compared with the first ones
_MOST = 0.25  # part that it may be where a batch is that large
_STUCK = 1e-3  # part of the loss that a change of all weights would change
_GROWTH = 1.1  # from one batch that is noted to the next


class Watch:
    """Notes the losses of a `fit` as it goes on, and looks at them once.

    Args:
        model: that is fitted.
        optimizer: its SGDPlus, which has made no update.
    """

    def __init__(self, model: Model, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        # A model with a train step of its own may mean its loss to rise, as a GAN does.
        self._is_done = not keras_trainer.has_stock_train_step(model)
        self._notes = [_Note(0, progress.NONE, (), 0.0)]
        self._first = progress.NONE
        self._num_batches, self._next = 0, 1.0
        progress.reset(optimizer)

    def begin_batch(self) -> None:
        """Notes the losses before a batch; fewer and fewer batches are noted."""
        self._num_batches += 1
        if not self._is_done and self._num_batches >= self._next:
            self._next = self._num_batches * _GROWTH
            self._note()

    def _note(self) -> None:
        latest, self._first = progress.take(self._optimizer)
        if latest.count and not self._first.count:
            self._is_done = True  # a callback has taken up an earlier run
        elif latest.count:
            has_fallen = self._first.is_above(latest)
            weights = () if has_fallen else self._weights()
            count = self._notes[-1].count + latest.count
            rate = causes.rate(self._optimizer)
            self._notes.append(_Note(count, latest, weights, rate))

    def report(self, data: Mapping[str, Any]) -> str | None:
        """The warning at the end of an epoch, once, or None.

        Args:
            data: the arguments of `fit`.
        """
        if self._is_done or self._optimizer.examples_per_update is None:
            return None
        self._note()
        count, first = self._notes[-1].count, self._first
        if self._is_done or count < MIN_UPDATES:
            return None
        earlier = [n for n in self._notes if n.count <= (1 - _LAST) * count]
        last = progress.NONE
        for note in self._notes[len(earlier) :]:
            last = last.plus(note.latest)
        if last.count > _MOST * count:
            return None  # of too few batches; the next epoch has more
        self._is_done = True
        if last.is_above(first):
            state = "above"
        elif not first.is_above(last) and self._is_stuck(earlier[-1], last):
            state = "with weights that hardly change any more, not below"
        else:
            return None
        seen = causes.seen(self._model, self._optimizer, data, may_be_stuck=True)
        return (
            "The loss should fall while a new optimizer trains. Received: a mean loss "
            f"of {last.mean:.4g} over the last {last.count:.0f} updates, {state} the "
            f"{first.mean:.4g} of the first {first.count:.0f}, with "
            f"{causes.setting(self._optimizer)}. Begin again with the weights of "
            f"before. Likely causes, in this order: {causes.listed(seen)}. With data "
            "in the order of time or of classes it may be as it should."
        )

    def _is_stuck(self, note: _Note, last: Losses) -> bool:
        # Whether weights that change by their own size would hardly change the loss, to
        # first order. At an optimum the gradients of single examples are not small.
        optimizer, now = self._optimizer, self._weights()
        rate = min(note.rate, causes.rate(optimizer))
        if not rate or len(now) != len(note.weights) or not now:
            return False
        pairs = zip(now, note.weights, strict=True)
        moved = math.sqrt(sum((a.projection - b.projection) ** 2 for a, b in pairs))
        if any(getattr(optimizer, name) is not None for name in _OTHER_STEPS):
            return not moved  # steps say nothing of the sizes of gradients
        gradient = moved / (rate * math.sqrt(last.count))
        size = math.sqrt(sum(weight.squares for weight in now))
        # Weights that begin at zero may go to one.
        return gradient * max(size, 1) < _STUCK * abs(last.mean)

    def _weights(self) -> list[_Weight]:
        return [_Weight.of(v) for v in self._model.trainable_variables]


# Settings with which a step is not the rate times the gradient of an example.
_OTHER_STEPS = (
    *("max_loss_fraction", "clipnorm", "clipvalue", "global_clipnorm"),
    "gradient_accumulation_steps",
)
_MOST_ENTRIES = 1 << 16  # of a variable that are looked at


class _Weight(NamedTuple):
    # Of a variable: its projection on a fixed direction, and its squares. Two of the
    # first tell how far it has moved, without a copy. The direction is not that of
    # ones, for the gradients of a softmax add up to zero.
    projection: float
    squares: float

    @classmethod
    def of(cls, variable: Any) -> _Weight:
        flat = tf.reshape(variable.value, (-1,))
        step = max(1, -(-math.prod(variable.shape) // _MOST_ENTRIES))
        sample = np.asarray(flat[::step]).astype("float64")
        # No product of matrices: the threads of BLAS go on to spin after it.
        with np.errstate(all="ignore"):  # of weights that are NaN
            projection = np.sum(sample * _direction()[: sample.size])
            squares = np.sum(sample * sample)
        return cls(math.sqrt(2 * step) * float(projection), step * float(squares))


@functools.cache
def _direction() -> np.ndarray:
    return np.cos(1 + np.arange(_MOST_ENTRIES))


class _Note(NamedTuple):
    count: float  # of the updates so far
    latest: Losses  # since the note before
    # The weights and the rate. Without weights if the latest losses are below the
    # first.
    weights: Sequence[_Weight]
    rate: float
