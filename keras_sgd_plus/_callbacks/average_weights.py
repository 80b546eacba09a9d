"""AverageWeights: a callback that evaluates and returns averages of the weights.

`Averages` are those of one run of `fit`, and get into the model and out of it again.
The callback says when: it comes before all others, so that these see the averages at
the end of an epoch. `ExactResume` finds the averages at the run, and saves them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._fit import fits
from keras_sgd_plus._fit.hooks import install_fit
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Model
from keras_sgd_plus._rule.ours import is_ours, unwrap

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

    def saved(self) -> list[tf.Variable]:
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

    def _can_use_xla(self, native: list[tf.Variable]) -> bool:
        # Half the time of the update. XLA reads its flags when it first compiles, and
        # an SGDPlus has set them; a model without one must not compile before it.
        optimizer = self._model.optimizer
        is_local = not any(
            isinstance(v, tf.distribute.DistributedValues) for v in native
        )
        return is_local and is_ours(optimizer) and bool(unwrap(optimizer).jit_compile)


def _compiled(
    python: Callable[[], None], use_xla: bool = False
) -> Callable[[], object]:
    # The concrete function saves the look at the arguments at each call.
    return tf.function(python, jit_compile=use_xla).get_concrete_function()


def _at_least_float32(dtype: tf.DType) -> tf.DType:
    return tf.float32 if dtype.size < 4 else dtype


class AverageWeights(fits.ComesFirst, keras.callbacks.Callback):
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
        settings.backend("AverageWeights")
        self.start_epoch = _checked_start(start_epoch)
        self._averages: Averages | None = None
        install_fit()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts clean."""
        model: Any = self.model
        run = fits.begun(model)
        if run is None:  # a loop by hand: the list is as its author made it
            _check_alone(model, [self])
            self._averages = Averages(model, self.start_epoch)
            return
        self._averages = averages_in(run)
        run.at_end.callback(self._forget_run)
        params: Any = self.params
        check_reached(self.start_epoch, params["epochs"])

    def _forget_run(self) -> None:
        # Keras calls no `on_train_end` where `fit` ends by an error or an interrupt.
        if self._averages is not None:
            self._averages.hide()
        self._averages = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has neither the model nor the run."""
        return {**vars(self), "_averages": None, "_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, too, `fit` has to know it."""
        vars(self).update(state)
        install_fit()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Puts the weights of training back."""
        if self._averages is not None:
            self._averages.begin_epoch(epoch)

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Puts the weights of training back, after an evaluation inside an epoch."""
        if self._averages is not None:
            self._averages.hide()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Takes the weights into the averages."""
        if self._averages is not None:
            self._averages.end_batch(batch)

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Puts the averages into the model."""
        if self._averages is not None:
            self._averages.show()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Puts the averages into the model, for the callbacks that come after this."""
        if self._averages is not None:
            self._averages.show()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Leaves the averages in the model, or what another callback has put there."""
        self._averages = None


def averages_in(run: fits.Run) -> Averages | None:
    """The averages of a `fit` that begins, or None without an `AverageWeights`.

    The callback that asks first makes them.
    """
    own = [c for c in run.callbacks if isinstance(c, AverageWeights)]
    if own and run.averages is None:
        _check_alone(run.model, run.callbacks)
        run.averages = Averages(run.model, own[0].start_epoch)
    return run.averages


def _checked_start(value: object) -> int | None:
    text = (
        "`start_epoch` must be an int >= 0, or None. Received: "
        f"start_epoch={settings.shown(value)}. Use None for polynomial decay."
    )
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        raise TypeError(text)
    if value is not None and value < 0:
        raise ValueError(text)
    return value


def check_reached(epoch: int | None, epochs: int) -> None:
    """Raises ValueError for a `start_epoch` that is none of the epochs of `fit`."""
    if epoch is not None and epoch >= epochs:
        raise ValueError(
            "`start_epoch` must be an epoch of fit, which counts them from 0. "
            f"Received: start_epoch={epoch} and fit(epochs={epochs}). Use {epochs - 1} "
            "or less."
        )


def _check_alone(model: Model, callbacks: Iterable[keras.callbacks.Callback]) -> None:
    # Only one may average weights: of these callbacks, and of the model's optimizers.
    kinds = (AverageWeights, keras.callbacks.SwapEMAWeights)
    averaging = [type(c).__name__ for c in callbacks if isinstance(c, kinds)]
    outer = unwrap(model.optimizer)
    for optimizer in getattr(outer, "optimizers", [outer]):
        if getattr(optimizer, "use_ema", False):
            averaging.append(f"{type(optimizer).__name__}(use_ema=True)")
    if len(averaging) > 1:
        raise ValueError(
            "AverageWeights must be alone in putting averages into the model. "
            f"Received: {' and '.join(averaging)}. Leave out all but one of them: "
            "use_ema=True averages after each update, AverageWeights after each batch."
        )
