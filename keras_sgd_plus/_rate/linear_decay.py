"""LinearDecay: a callback with which the learning rate falls along a line.

    rate of batch b = base + (to - base) * b / N        # b of the N that remain

The base rate is in the optimizer whenever no batch is trained on: what is saved between
two batches has it, and it is there after `fit`, however that ends. So the callback has
no state: the place on the line follows from the epoch and the batch.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import keras

from keras_sgd_plus._callbacks.average_weights import check_reached
from keras_sgd_plus._callbacks.seeded_arrays import check_positive
from keras_sgd_plus._fit import fits
from keras_sgd_plus._fit.hooks import install_fit
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._rule.ours import unwrap

SETTERS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)


class LinearDecay(fits.ComesFirst, keras.callbacks.Callback):
    """Lets the learning rate fall along a line, from batch to batch, until `fit` ends.

    Use it whenever the number of epochs is known: a rate that begins high finds its way
    fast, and one that ends at zero leaves no noise in the weights. With
    `find_learning_rate` nobody has to choose a number. It works with every Keras
    optimizer that has one learning rate.

    Batch `b` of the `N` that `fit` makes from `start_epoch` on is trained with

    ```python
    rate = base + (to - base) * b / N  # b from 0
    ```

    where `base` is the optimizer's `learning_rate` before that batch. Inside a batch
    the rate is constant, for all examples of it.

    Args:
        to: Float >= 0. The rate to which the line leads, after the last batch. Defaults
            to `0.0`.
        start_epoch: Int >= 0, counted from 0. Before it the rate is the base rate.
            Defaults to `0`.
        num_batches: Int >= 1, the batches of an epoch, for data that do not tell their
            number: generators, some data sets. None takes what `fit` knows. Defaults to
            `None`.

    Raises:
        ValueError: `to` below 0 or not finite; `start_epoch` below 0; `num_batches`
            below 1; in `fit`, a `start_epoch` that is none of its epochs, data of
            unknown length without `num_batches` or of another length, a schedule as
            `learning_rate`, or another callback that sets the rate beside it.
        TypeError: `to` is no number; `start_epoch` or `num_batches` is no int.
        RuntimeError: Keras does not run on TensorFlow.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import LinearDecay, SGDPlus

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(SGDPlus(0.01), "mse")
    x = np.random.default_rng(0).normal(size=(1000, 4))
    model.fit(x, x.sum(axis=1), batch_size=100, epochs=2, callbacks=[LinearDecay()])
    print(float(model.optimizer.learning_rate))  # 0.01 again
    ```

    Notes:
        - Its place in the list of callbacks does not matter: it moves to the front.
        - The base rate is in the optimizer between batches and after `fit`, also after
          an error: `ModelCheckpoint` and `ExactResume` save it, and a run that
          `ExactResume` takes up goes on along the same line. The logs of each epoch
          have the rate of its last batch, "learning_rate".
        - With `fit(initial_epoch=e, epochs=n)` the line is that of all `n` epochs.
        - `EarlyStopping` may end `fit` before the rate is low.
        - With `steps_per_execution=s` the rate changes every `s` batches.

    References:
        - [Defazio et al., 2023](https://arxiv.org/abs/2310.07831): why a linear decay
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    def __init__(
        self, to: float = 0.0, start_epoch: int = 0, num_batches: int | None = None
    ) -> None:
        super().__init__()
        settings.backend("LinearDecay")
        self.to, self.start_epoch = _checked_to(to), _checked_start(start_epoch)
        if num_batches is not None:
            check_positive("num_batches", num_batches)
        self.num_batches = num_batches
        self._epoch = self._steps = self._total = 0
        self._last: float | None = None
        install_fit()

    def __reduce__(self) -> tuple[object, ...]:
        """A copy has the arguments, and neither the model nor the run."""
        return type(self), (self.to, self.start_epoch, self.num_batches)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Finds out how many batches there are."""
        model: Any = self.model
        run = fits.begun(model)
        _check_alone(model.optimizer, self, [] if run is None else run.callbacks)
        params: Any = self.params or {}
        epochs = params.get("epochs")
        if epochs is None:
            raise ValueError(
                "LinearDecay must know the number of epochs. Received: a loop by hand "
                "without it. Write keras.callbacks.CallbackList(callbacks, model=model,"
                " epochs=n, steps=batches_of_an_epoch)."
            )
        check_reached(self.start_epoch, epochs)
        self._steps = _checked_steps(self.num_batches, params.get("steps"))
        self._total = (epochs - self.start_epoch) * self._steps
        self._last = None
        self._put_back()  # after an error in a `fit` that was called before any wrap
        if self._total == 1:
            warnings.warn(
                "LinearDecay should have more than one batch to fall over. Received: "
                "one, which is trained with the base rate. Use a smaller batch_size, "
                "or more epochs."
            )
        if run is not None:
            run.at_end.callback(self._put_back)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Sets the rate of this batch."""
        rate: Any = self._rate_variable()
        self._put_back()
        base = float(rate.numpy())
        reached = (self._epoch - self.start_epoch) * self._steps + batch
        part = min(max(reached, 0), self._total) / self._total
        self._last = base + (self.to - base) * part
        _bases[self._optimizer()] = base
        rate.assign(self._last)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Puts the base rate back."""
        self._put_back()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes the rate of the last batch in the logs."""
        self._put_back()  # the data may have ended after the beginning of a batch
        if logs is not None and self._last is not None:
            logs["learning_rate"] = self._last

    def _put_back(self) -> None:
        base = _bases.pop(self._optimizer(), None)
        if base is not None:
            self._rate_variable().assign(base)

    def _optimizer(self) -> Any:
        model: Any = self.model
        return unwrap(model.optimizer)

    def _rate_variable(self) -> Any:
        return self._optimizer().learning_rate


# Optimizer -> its base rate, while a batch is trained on.
_bases: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


def _checked_to(value: Any) -> float:
    text = (
        f"`to` must be a finite number >= 0. Received: to={settings.shown(value)}. Use "
        "0.0 for a rate that falls to zero."
    )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return float(value)


def _checked_start(value: Any) -> int:
    text = (
        "`start_epoch` must be an int >= 0. Received: "
        f"start_epoch={settings.shown(value)}. Use 0 for a fall from the first batch."
    )
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(text)
    if value < 0:
        raise ValueError(text)
    return value


def _checked_steps(given: int | None, known: int | None) -> int:
    if given is None and known is None:
        raise ValueError(
            "LinearDecay must know the batches of an epoch. Received: data that do not "
            "tell their number. Write LinearDecay(num_batches=n), or "
            "fit(steps_per_epoch=n)."
        )
    if None not in (given, known) and given != known:
        raise ValueError(
            "`num_batches` must be the batches of an epoch. Received: num_batches="
            f"{given}, and data of {known} batches. Leave num_batches out."
        )
    return given or known or 1


def _check_alone(
    optimizer: Any, own: LinearDecay, callbacks: Iterable[keras.callbacks.Callback]
) -> None:
    if keras_optimizer.schedule(unwrap(optimizer)) is not None:
        raise ValueError(
            "LinearDecay must have a number as the learning rate that falls. Received: "
            "an optimizer whose learning_rate is a schedule. Use one of the two."
        )
    others = [
        type(c).__name__
        for c in callbacks
        if c is not own and isinstance(c, (*SETTERS, LinearDecay))
    ]
    if others:
        raise ValueError(
            "LinearDecay must be the only callback that sets the learning rate. "
            f"Received: {' and '.join(others)} beside it. Use one of them."
        )
