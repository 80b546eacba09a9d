"""ExactResume: a callback with which a restarted run ends with the same bits.

A save is a checkpoint of TensorFlow with all that training changes: `saves.py` knows
which saves of a directory are good, and of which run. What other callbacks of the
package have to save (`AverageWeights`, `ExampleLog`) is a part of it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._callbacks.average_weights import averages_in
from keras_sgd_plus._callbacks.example_log import ExampleLog
from keras_sgd_plus._callbacks.log_records import packed, unpacked
from keras_sgd_plus._callbacks.saves import (
    NAME,
    RunState,
    Saves,
    differences,
    identity_of,
    saved_identity,
)
from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays, check_positive
from keras_sgd_plus._fit import fits
from keras_sgd_plus._fit.hooks import install_fit
from keras_sgd_plus._fit.train_function import FastForward, TrainFunction
from keras_sgd_plus._loop import examples
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_model, keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import (
    Optimizer,
    Strategy,
    Structure,
    Variable,
)
from keras_sgd_plus._report import bad_examples, running_sums
from keras_sgd_plus._rule.ours import is_ours, unwrap

_AVERAGES = "averages"  # the part of a save that AverageWeights needs
_LOG = "log"  # that of ExampleLog


class ExactResume(keras.callbacks.Callback):
    """Saves a run of `fit`, and takes it up again where it was, in mid-epoch, too.

    Use it for runs that may be killed: restarted with the same command, the run ends
    with the weights of an uninterrupted one, bit for bit. Keras's `BackupAndRestore`
    begins the epoch again, on weights from its middle, and saves no seed of dropout.

    Each save is one `tf.train.Checkpoint` with model, optimizer, the states of seed
    generators and metrics, and the position in the epoch. It counts only once it is
    complete, so a kill inside a save costs nothing but that save.

    Args:
        directory: Str or path, for this run alone. A save in it is restored.
        save_freq: `"epoch"`, or int: every so many batches, and after each epoch.
            Defaults to `"epoch"`.
        max_to_keep: Int >= 1. Older saves are deleted. Defaults to `3`.

    Raises:
        ValueError: `save_freq` or `max_to_keep` below 1; in `fit`, data that come in
            another order after a restart, a model that is not built, a save of another
            model, or of epochs of another length.
        TypeError: `directory` that is no path; `save_freq` or `max_to_keep` of another
            kind; in `fit`, an optimizer that is no `SGDPlus`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(SGDPlus(0.001, momentum=0.9), "mse")
    x = np.random.default_rng(0).normal(size=(1000, 4))
    data = SeededArrays(x, x.sum(axis=1), batch_size=100, seed=1)
    model.fit(data, epochs=3, shuffle=False, callbacks=[ExactResume("run", 5)])
    ```

    Notes:
        - The data have to come again as they came: arrays or a `PyDataset` with
          `fit(shuffle=False)`, for example `SeededArrays`; a `tf.data.Dataset` whose
          shuffles have a seed and `reshuffle_each_iteration=False`, or one that
          repeats, with `steps_per_epoch`. Others are refused where Keras lets them be
          seen. Batches before the position are read again, and not trained on.
        - Seed the script with `keras.utils.set_random_seed`: a kill before the first
          save starts anew.
        - Put it last in the list of callbacks. Counters inside other callbacks
          (patience of `EarlyStopping`) are not saved.
        - With `AverageWeights` a save holds the weights of training and the averages,
          with `ExampleLog` its records, in whatever order they are listed.
        - On several workers the directory is one that all of them see; the chief alone
          writes to it. All workers have to be started again.
        - Bit-equality holds on the same machine with the same versions, threads and
          XLA flags.
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    def __init__(
        self,
        directory: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        max_to_keep: int = 3,
    ) -> None:
        super().__init__()
        _check_directory(directory)
        if save_freq != "epoch":
            check_positive("save_freq", save_freq)
        check_positive("max_to_keep", max_to_keep)
        install_fit()
        self.directory = os.fspath(directory)
        self.save_freq, self.max_to_keep = save_freq, max_to_keep

    def __reduce__(self) -> tuple[object, ...]:
        """A copy has the arguments, and neither the model nor the run."""
        arguments = (self.directory, self.save_freq, self.max_to_keep)
        return type(self), arguments

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Restores the last save of the directory, if there is one."""
        model: Any = self.model
        params: Any = self.params
        self._model, self._outer = model, model.optimizer
        self._optimizer = unwrap(self._outer)
        self._steps = params.get("steps") or 0  # batches per epoch
        _check_resumable(self._optimizer)
        run = fits.begun(model)
        self._data = None if run is None else run.data
        self._first_epoch = 0 if run is None else run.initial_epoch
        if self._data is not None:
            _check_replayable(self._data)
        callbacks = [] if run is None else run.callbacks
        self._averages = None if run is None else averages_in(run)
        self._log = next((c for c in callbacks if isinstance(c, ExampleLog)), None)
        self._manager: Any = None
        self._epoch, self._batch, self._unsaved = 0, 0, 0
        self._reached = (0, 0)  # epoch and batch up to which the save had trained
        saves = Saves.of(self.directory)
        saves.refuse_if_all_are_damaged()
        self._number = saves.last + 1
        current = model.distribute_strategy
        newest = saves.complete[-1] if saves.complete else 0
        check_same_saves(replicas.gathered(current, newest))
        # Reading metrics takes all workers, so all save, but one save counts.
        self._is_chief = replicas.is_chief(current)
        self._written = self.directory
        if not self._is_chief:
            self._temporary = tempfile.TemporaryDirectory()
            self._written = self._temporary.name
        if (text := saves.warning()) is not None:
            warnings.warn(text)
        if saves.newest is not None:
            if self._is_chief:
                saves.list_complete()
            self._restore(saves.newest)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Notes the epoch, also for `SeededArrays`."""
        keras_trainer.set_initial_epoch(self._model, None)  # has been read
        self._epoch, self._batch = epoch, 0
        data = None if self._data is None else self._data.dataset
        if isinstance(data, SeededArrays):
            data.next_epoch = epoch

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Saves if it is time."""
        num_new, self._batch = batch + 1 - self._batch, batch + 1
        if (self._epoch, self._batch) <= self._reached:
            return
        self._unsaved += num_new
        if self.save_freq != "epoch" and self._unsaved >= int(self.save_freq):
            self._save(self._epoch, self._batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves the beginning of the next epoch."""
        self._save(epoch + 1, 0)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Resets the initial epoch, so that a later `fit` begins at its own."""
        keras_trainer.set_initial_epoch(self._model, None)
        if not self._is_chief:
            self._temporary.cleanup()

    def _parts(self) -> dict[str, Any]:
        states = [v for v in self._model.variables if keras_optimizer.is_seed(v)]
        shared = keras_optimizer.global_seed_state()
        if shared is not None:
            states.append(shared)
        parts = {
            "model": self._model,
            "optimizer": self._outer,
            "seeds": [v.value for v in states],
            "position": tf.Variable(tf.zeros(5, tf.int64), trainable=False),
            "run": RunState(identity_of(self._model, self._outer, self._data)),
        }
        if self._averages is not None:
            parts[_AVERAGES] = self._averages.saved()
        if self._log is not None:
            parts[_LOG] = _LogState(self._log, self._model.distribute_strategy)
        return parts

    def _save(self, epoch: int, batch: int) -> None:
        if self._manager is None:
            parts = self._parts()
            self._position, self._log_state = parts["position"], parts.get(_LOG)
            metrics = [v.value for v in self._metrics_variables()]
            self._manager = tf.train.CheckpointManager(
                tf.train.Checkpoint(**parts, metrics=metrics),
                self._written,
                max_to_keep=self.max_to_keep if self._is_chief else 1,
                checkpoint_name=NAME,
            )
        ledger, seed = bad_examples.ledger_of(self._optimizer), self._optimizer.seed
        skipped = 0 if ledger is None else int(ledger.in_epoch.numpy())
        self._position.assign([epoch, batch, seed, self._steps, skipped])
        averages = self._averages
        hidden = contextlib.nullcontext() if averages is None else averages.hidden()
        with hidden, replicas.lost_workers(self._model.distribute_strategy):
            if self._log_state is not None:
                self._log_state.collect()
            try:
                self._manager.save(checkpoint_number=self._number)
            except Exception as error:  # of many classes
                error.add_note(
                    "ExactResume must be able to write to its directory. Received: "
                    f"this error, for save {self._number} in {self._written!r}. The "
                    "saves before it are complete: make room, and start the same "
                    "command again."
                )
                raise
        self._number += 1
        self._unsaved = 0

    def _restore(self, path: str) -> None:
        model, outer = self._model, self._outer
        if not model.built:
            raise ValueError(
                "A model must be built before ExactResume can restore it. Received: "
                f"{model.name!r}, which is not. Begin it with keras.Input, or call it "
                "on a batch."
            )
        if not outer.built:
            outer.build(model.trainable_variables)
        epoch, batch, seed, _, skipped = self._read(path)
        self._optimizer.seed = seed
        self._reached = (epoch, batch)
        keras_trainer.set_initial_epoch(model, epoch)
        if self._averages is not None:
            self._averages.resume(epoch, batch)

        def begin(data: Structure) -> None:
            self._restore_metrics(path, data)
            ledger = bad_examples.ledger_of(self._optimizer)
            if ledger is not None:
                ledger.in_epoch.assign(skipped)

        steps = 0 if self._data is None else self._data.steps_per_epoch or 0
        earlier = steps * max(epoch - self._first_epoch, 0)
        if batch or earlier:
            if not isinstance(model.train_function, TrainFunction):
                made = TrainFunction(model, self._optimizer, model.train_function)
                model.train_function = made
            model.train_function.forward = FastForward(
                earlier, batch, model.steps_per_execution, begin
            )

    def _read(self, path: str) -> list[int]:
        # Restores all or nothing; the position as it was saved.
        variables = [*self._model.variables, *self._outer.variables]
        before = [v.numpy() for v in variables]
        parts = self._parts()
        if self._log is not None and not _has(path, _LOG):
            del parts[_LOG]
        try:
            there = saved_identity(path)
            if there is None:
                del parts["run"]
            else:
                here = identity_of(self._model, self._outer, self._data)
                if found := differences(there, here):
                    raise ValueError("; ".join(found))
            status = tf.train.Checkpoint(**parts).restore(path)
            status.assert_existing_objects_matched().expect_partial()
            position = parts["position"].numpy().tolist()
            if self._averages is None and _has(path, _AVERAGES):
                raise ValueError("callbacks with AverageWeights there, without it here")
            if self._log is not None and _LOG not in parts:
                raise ValueError("callbacks with ExampleLog here, without it there")
            if position[3] != self._steps:
                raise ValueError(
                    f"epochs of {position[3]} batches there, of {self._steps} here"
                )
        except (AssertionError, ValueError) as error:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                "ExactResume must find a save of this run in its directory. Received: "
                f"{path!r}, which does not fit: {reason}. Name another directory, or "
                "restart with the command that it was written by."
            ) from None
        return position

    def _restore_metrics(self, path: str, data: Structure) -> None:
        # They may be made by the first batch only, and are reset before each epoch.
        current = self._model.distribute_strategy
        batch = examples.unpack(
            keras.tree.map_structure(
                lambda part: current.experimental_local_results(part)[0], data
            )
        )
        size = self._optimizer.examples_per_update or 1
        keras_model.build(self._model, self._outer, examples.specs(batch, size))
        reader = tf.train.load_checkpoint(path)
        for i, variable in enumerate(self._metrics_variables()):
            name = f"metrics/{i}/.ATTRIBUTES/VARIABLE_VALUE"
            variable.assign(np.asarray(reader.get_tensor(name)))

    def _metrics_variables(self) -> list[Variable]:
        counts = running_sums.capped_of(self._optimizer)
        return [*self._model.metrics_variables, *([] if counts is None else [counts])]


class _LogState(tf.train.experimental.PythonState):
    # The records of an `ExampleLog` as a part of a save, which one worker writes: so it
    # has those of all.
    def __init__(self, log: ExampleLog, strategy: Strategy) -> None:
        self._log, self._strategy, self._saved = log, strategy, b""

    def collect(self) -> None:
        """Called by all workers, at the same place, before a save."""
        parts = replicas.gathered_bytes(self._strategy, self._log.records.saved())
        named = {str(i): np.frombuffer(p, np.uint8) for i, p in enumerate(parts)}
        self._saved = packed(named)

    def serialize(self) -> bytes:
        """Called by TensorFlow for each save."""
        return self._saved

    def deserialize(self, string_value: bytes) -> None:
        """Called by TensorFlow with what `serialize` gave."""
        parts = unpacked(string_value)
        num_workers = len(replicas.gathered(self._strategy, 0))
        if len(parts) != num_workers:
            raise ValueError(f"{len(parts)} workers there, {num_workers} here")
        own = parts[str(replicas.worker(self._strategy))]
        self._log.records.restore(own.tobytes())


def _has(path: str, part: str) -> bool:
    names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    return any(name.startswith(f"{part}/") for name in names)


def _check_directory(value: object) -> None:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(
            "`directory` must be a str or a path. Received: "
            f"directory={settings.shown(value)}. Name one for this run alone."
        )


def _check_resumable(optimizer: Optimizer) -> None:
    if not is_ours(optimizer):
        raise TypeError(
            "ExactResume must be used with an SGDPlus. Received: "
            f"{type(optimizer).__name__}. Compile the model with SGDPlus(...), or with "
            "examples_per_update=None for one update per batch."
        )


def _check_replayable(data: keras_trainer.Data) -> None:
    if data.steps_per_epoch and data.num_batches is not None:
        raise ValueError(
            "ExactResume with steps_per_epoch must have data that never end. Received: "
            f"steps_per_epoch={data.steps_per_epoch} and {data.num_batches} batches. "
            "Use dataset.repeat(), or leave steps_per_epoch out."
        )
    if data.shuffles:
        raise ValueError(
            "ExactResume must see the same batches again after a restart. Received: "
            "fit(shuffle=True), which draws their order anew. Use fit(shuffle=False); "
            "SeededArrays(x, y, seed=...) has a fresh order in each epoch."
        )
    if keras_trainer.shuffles_differently(data.dataset) and not data.steps_per_epoch:
        raise ValueError(
            "ExactResume must see the same batches again after a restart. Received: a "
            "tf.data.Dataset whose shuffle() is drawn anew. Use shuffle(..., seed=..., "
            "reshuffle_each_iteration=False), or repeat() with steps_per_epoch."
        )


def check_same_saves(numbers: Sequence[int]) -> None:
    """Raises ValueError where workers found different last saves in a directory."""
    if len(set(numbers)) > 1:
        raise ValueError(
            "`directory` must be one that all workers see. Received: workers whose "
            f"last saves there are {list(numbers)}. Use a folder that they share."
        )
