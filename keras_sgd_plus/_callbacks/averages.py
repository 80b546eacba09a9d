"""The averages of a model's weights in one run of `fit`, and how they get into it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Model
from keras_sgd_plus._trainer import is_ours, unwrap

_DECAY = 8  # d of polynomial decay; 0 is the plain mean


class Averages:
    """The averages of one run, and the weights of training while averages are shown.

    At the end of batch t, counted from 1, each average a becomes

        a + (d + 1) / (t + d) * (w - a)

    with d = 8 (Shamir & Zhang, 2013), or d = 0 for the plain mean. For t = 1 that is w.

    Args:
        model: in training. It may be built by its first batch only.
        start_epoch: the epoch with which the plain mean begins; None: polynomial decay
            from the first batch of the run.
    """

    def __init__(self, model: Model, start_epoch: int | None) -> None:
        self._model = model
        self._first_epoch = start_epoch or 0
        self._decay = _DECAY if start_epoch is None else 0
        self._epoch = 0
        self._reached = (0, 0)  # epoch and batch up to which a save had trained
        self._is_built = self._is_shown = False

    def begin_epoch(self, epoch: int) -> None:
        """Puts the weights of training back."""
        self._epoch = epoch
        self.hide()

    def end_batch(self, batch: int) -> None:
        """Takes the weights into the averages, unless this batch was only replayed.

        Args:
            batch: the last that was trained on, from 0.
        """
        was_replayed = (self._epoch, batch + 1) <= self._reached
        if self._epoch >= self._first_epoch and not was_replayed:
            self._build()
            self._update()

    def show(self) -> None:
        """Puts the averages into the model, where there are any."""
        if self._is_built and not self._is_shown and int(self._count.numpy()):
            self._put_in()
            self._is_shown = True

    def hide(self) -> None:
        """Puts the weights of training back into the model."""
        if self._is_shown:
            self._put_back()
            self._is_shown = False

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Has the weights of training in the model for a while."""
        was_shown = self._is_shown
        self.hide()
        yield
        if was_shown:
            self.show()

    def saved(self) -> list[Any]:
        """The variables that a save has to hold beside the weights of training."""
        self._build()
        return [self._count, *self._means]

    def resume(self, epoch: int, batch: int) -> None:
        """Goes on where a save was made; the variables have their values again."""
        self._reached = epoch, batch
        if not batch:  # between epochs the model has the averages
            self.show()

    def _build(self) -> None:
        if self._is_built:
            return
        native = [keras_optimizer.native(v) for v in self._model.trainable_variables]
        with tf.init_scope():
            # float16 would lose what a late batch adds.
            wide = [_at_least_float32(v.dtype) for v in native]
            shapes = [v.shape for v in native]
            self._means = [
                tf.Variable(tf.zeros(shape, dtype), trainable=False)
                for shape, dtype in zip(shapes, wide, strict=True)
            ]
            self._kept = [
                tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in native
            ]
            self._count = tf.Variable(tf.zeros((), tf.int64), trainable=False)
        pairs = list(zip(native, self._means, self._kept, strict=True))

        # Each is one call of TensorFlow, over all weights.
        def update() -> None:
            count = tf.cast(self._count.assign_add(1), tf.float64)
            share = (self._decay + 1) / (count + self._decay)
            for weight, mean, _ in pairs:
                difference = tf.cast(weight, mean.dtype) - mean
                mean.assign_add(tf.cast(share, mean.dtype) * difference)

        def put_in() -> None:
            for weight, mean, kept in pairs:
                kept.assign(weight)
                weight.assign(tf.cast(mean, weight.dtype))

        def put_back() -> None:
            for weight, _, kept in pairs:
                weight.assign(kept)

        self._update = _compiled(update, self._can_use_xla(native))
        self._put_in, self._put_back = _compiled(put_in), _compiled(put_back)
        self._is_built = True

    def _can_use_xla(self, native: list[Any]) -> bool:
        # Half the time of the update. XLA reads its flags when it first compiles, and
        # an SGDPlus has set them; a model without one must not compile before it.
        optimizer = self._model.optimizer
        is_local = not any(
            isinstance(v, tf.distribute.DistributedValues) for v in native
        )
        return is_local and is_ours(optimizer) and bool(unwrap(optimizer).jit_compile)


def _compiled(python: Callable[[], None], use_xla: bool = False) -> Callable[[], Any]:
    # The concrete function saves the look at the arguments at each call.
    return tf.function(python, jit_compile=use_xla).get_concrete_function()


def _at_least_float32(dtype: Any) -> Any:
    return tf.float32 if dtype.size < 4 else dtype
