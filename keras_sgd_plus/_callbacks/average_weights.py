"""AverageWeights: a callback that evaluates and returns averages of the weights."""

from __future__ import annotations

import weakref
from typing import Any

import keras

from keras_sgd_plus._callbacks import checks
from keras_sgd_plus._callbacks.averages import Averages
from keras_sgd_plus._optimizer import arguments
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model
from keras_sgd_plus._trainer import fits, install_fit


class AverageWeights(keras.callbacks.Callback):
    """Averages the weights over the batches of `fit`, and gives the model the averages.

    Use it where the last weights are noisy, as those of SGD with a constant rate are:
    their average is near the middle of the noise. It costs one pass over the weights
    per batch. It needs neither another rate nor a schedule, and it does not help a
    training that diverges. It works with every Keras optimizer.

    Equivalent Python, at the end of each batch, with `t` counted from 1:

    ```python
    a = a + (d + 1) / (t + d) * (w - a)  # d = 8: polynomial decay; d = 0: the mean
    ```

    Training goes on with the weights `w`. The model holds the averages `a` while `fit`
    evaluates it, at the end of an epoch, when `ModelCheckpoint` and `EarlyStopping`
    read it, and after `fit`.

    Args:
        start_epoch: Int >= 0, counted from 0 as `fit` counts `initial_epoch`. The plain
            mean of the weights from this epoch on; evaluations before it see the
            weights. None: polynomial decay from the first batch, which forgets early
            weights by itself. Defaults to `None`.

    Raises:
        ValueError: `start_epoch` below 0; in `fit`, a `start_epoch` that is none of its
            epochs, or another source of averages: a second `AverageWeights`, Keras's
            `SwapEMAWeights`, an optimizer with `use_ema=True`.
        TypeError: `start_epoch` is no int.
        RuntimeError: Keras does not run on TensorFlow.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import AverageWeights, SGDPlus

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True) + rng.normal(size=(2000, 1))

    def distance(*callbacks):  # of the kernel from the true one
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(SGDPlus(0.01, seed=1), "mse")
        model.fit(x, y, batch_size=100, epochs=5, verbose=0, callbacks=callbacks)
        return np.abs(model.get_weights()[0] - 1).max()

    print(distance(AverageWeights()) < distance())  # True
    ```

    Notes:
        - Its place in the list of callbacks does not matter: it moves to the front.
        - `ModelCheckpoint(save_freq=100)`, inside an epoch, saves the weights of
          training. Weights that a callback assigns at the end of an epoch are lost.
        - Each `fit` starts clean: `t` counts from 1, and training starts with what the
          model holds, after an earlier `fit` its averages.
        - Only trainable weights are averaged. Moving statistics of BatchNormalization,
          seeds and metrics stay those of training.
        - After an error or an interrupt the model holds the weights of training.
        - `ExactResume` saves weights and averages. `BackupAndRestore` does not: after a
          restart it trains from the averages.
        - With `steps_per_execution=s` it averages once per s batches.
        - It keeps two copies of the trainable weights.

    References:
        - [Shamir and Zhang, 2013](https://arxiv.org/abs/1212.1824): polynomial decay
        - [Polyak and Juditsky, 1992](https://doi.org/10.1137/0330046): the mean
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    def __init__(self, start_epoch: int | None = None) -> None:
        super().__init__()
        arguments.backend("AverageWeights")
        self.start_epoch = checks.start_epoch(start_epoch)
        self._averages: Averages | None = None
        install_fit()

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts clean, and moves to the front of the list of callbacks."""
        del logs
        callbacks = keras_trainer.callbacks_of_fit()
        if callbacks is None:  # a loop by hand: the list is as its author made it
            checks.only_averages(self.model, [self])
            self._averages = Averages(self.model, self.start_epoch)
            return
        self._averages = averages_in(callbacks)
        if (run := fits.of(self.model)) is not None:
            run.at_end(self._forget_run)
        params: Any = self.params
        checks.is_reached(self.start_epoch, params)

    def _forget_run(self) -> None:
        # Keras calls no `on_train_end` where `fit` ends by an error or an interrupt.
        if self._averages is not None:
            self._averages.hide()
        self._averages = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has neither the model nor the run."""
        return {**vars(self), "_averages": None, "_model": None}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts the weights of training back."""
        del logs
        if self._averages is not None:
            self._averages.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Puts the weights of training back, after an evaluation inside an epoch."""
        del batch, logs
        if self._averages is not None:
            self._averages.hide()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the weights into the averages."""
        del logs
        if self._averages is not None:
            self._averages.end_batch(batch)

    def on_test_begin(self, logs: Any = None) -> None:
        """Puts the averages into the model."""
        del logs
        if self._averages is not None:
            self._averages.show()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Puts the averages into the model, for the callbacks that come after this."""
        del epoch, logs
        if self._averages is not None:
            self._averages.show()

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the averages in the model, or what another callback has put there."""
        del logs
        self._averages = None
        callbacks = keras_trainer.callbacks_of_fit()
        if callbacks is not None:  # a list that a user has made may be used again
            _RUNS.pop(callbacks, None)


# List of callbacks -> the averages of its `fit`. Each run makes a list of its own.
_RUNS: weakref.WeakKeyDictionary[keras.callbacks.CallbackList, Averages]
_RUNS = weakref.WeakKeyDictionary()


def averages_in(callbacks: keras.callbacks.CallbackList) -> Averages | None:
    """The averages of a `fit` that begins, or None without an `AverageWeights`.

    The first callback that asks makes them, so that `ExactResume` may stand before.
    """
    each = callbacks.callbacks
    own = [c for c in each if isinstance(c, AverageWeights)]
    if not own:
        return None
    if callbacks not in _RUNS:
        model: Model = own[0].model
        swaps = [c for c in each if isinstance(c, keras.callbacks.SwapEMAWeights)]
        checks.only_averages(model, [*own, *swaps])
        _RUNS[callbacks] = Averages(model, own[0].start_epoch)
        # All others then see the averages at the end of an epoch. A new list: Keras may
        # be walking along the old one.
        callbacks.callbacks = [*own, *(c for c in each if c is not own[0])]
    return _RUNS[callbacks]
