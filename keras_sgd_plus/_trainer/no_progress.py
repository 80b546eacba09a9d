"""A loss that did not fall: training runs, and the model does not learn.

Each loss is that of an example before its own update. So the first hundred of them are
what the model lost before it learned, and the last ones what it has learned. A few
updates with a rate that is too high may also leave a model whose outputs pass no
gradient back: then the first hundred losses are as high as the last, and no weight
changes any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

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
        self._notes = [_Note(0, progress.NONE, None)]
        self._first = progress.NONE
        self._num_batches, self._next = 0, 1.0
        self._direction = np.zeros(0)
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
            projections = None if has_fallen else self._projections()
            count = self._notes[-1].count + latest.count
            self._notes.append(_Note(count, latest, projections))

    def report(self, data: Mapping[str, Any]) -> str | None:
        """The warning at the end of an epoch, once, or None.

        Args:
            data: the arguments of `fit`.
        """
        if self._is_done:
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
            "The loss should fall while a new model learns. Received: a mean loss of "
            f"{last.mean:.4g} over the last {last.count:.0f} updates, {state} the "
            f"{first.mean:.4g} of the first {first.count:.0f}, with "
            f"{causes.setting(self._optimizer)}. Make the model anew before you train "
            f"again. Likely causes, in this order: {causes.listed(seen)}."
        )

    def _is_stuck(self, note: _Note, last: Losses) -> bool:
        # Whether weights that change by their own size would hardly change the loss, to
        # first order. At an optimum the gradients of single examples are not small.
        optimizer, now = self._optimizer, self._projections()
        rate = abs(float(optimizer.learning_rate.numpy()))
        if not rate or note.projections is None or not now:
            return False
        pairs = zip(now, note.projections, strict=True)
        moved = math.sqrt(sum((a - b) ** 2 for a, b in pairs))
        names = ("max_loss_fraction", "clipnorm", "clipvalue", "global_clipnorm")
        if any(getattr(optimizer, name) is not None for name in names):
            return not moved  # steps say nothing of the sizes of gradients
        gradient = moved / (rate * math.sqrt(last.count))
        size = math.sqrt(sum(float(np.sum(w * w)) for w in self._weights()))
        # Weights that begin at zero may go to one.
        return gradient * max(size, 1) < _STUCK * abs(last.mean)

    def _weights(self) -> Iterator[np.ndarray]:
        for variable in self._model.trainable_variables:
            yield np.asarray(variable.numpy()).ravel().astype("float64")

    def _projections(self) -> list[float]:
        # Of each variable on a fixed vector: two of them tell how far it has moved,
        # without a copy. Not on ones: the gradients of a softmax add up to zero.
        found = []
        for flat in self._weights():
            if flat.size > self._direction.size:
                self._direction = math.sqrt(2) * np.cos(1 + np.arange(flat.size))
            # No product of matrices: the threads of BLAS go on to spin after it.
            with np.errstate(all="ignore"):  # of weights that are NaN
                found.append(float(np.sum(flat * self._direction[: flat.size])))
        return found


class _Note(NamedTuple):
    count: float  # of the updates so far
    latest: Losses  # since the note before
    # Of the weights; None if the latest losses are below the first ones.
    projections: list[float] | None
