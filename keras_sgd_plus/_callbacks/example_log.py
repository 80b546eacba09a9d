"""ExampleLog: a callback that keeps what each example did."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._callbacks.log_records import PREDICTION, LogRecords, Rows
from keras_sgd_plus._fit import fits
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private.types import Model, Optimizer, Strategy, Structure
from keras_sgd_plus._report import records
from keras_sgd_plus._report.records import BatchRecord, Wanted
from keras_sgd_plus._rule.ours import is_ours, per_example, unwrap


class ExampleLog(keras.callbacks.Callback):
    """Keeps each example's loss before its own update, epoch by epoch.

    Use it to find wrong labels, hard examples and duplicates: the loop of an `SGDPlus`
    has every example's loss, so nothing is computed twice. With an optimizer that makes
    one update per batch there is no such loss; predict and compute it yourself there.

    Equivalent Python (this is what is kept):

    ```python
    for i in order:                                  # each example of the epoch
        prediction[epoch, i] = model(x[i])           # before its own update
        loss[epoch, i] = total_loss(y[i], prediction[epoch, i])
        g = gradient(loss[epoch, i], w)
        gradient_norm[epoch, i] = sqrt(sum(g ** 2))  # over all weights
        visited[epoch, i] = updates_so_far
        w = update(w, g)
    ```

    Args:
        gradient_norm: Bool. Keeps the Euclidean norm of each gradient too, before
            clipping and without loss scaling. Defaults to `False`.
        prediction: Bool. Keeps the outputs of the model too, which takes the memory of
            as many outputs as there are examples, per epoch. Defaults to `False`.
        id: String or int, where the inputs tell each example's row, at most once in an
            epoch: the key of a dict, with integers of shape `(num_examples,)`; or the
            number of a column of an array `(num_examples, columns)`, of any type. Data
            in any order will do with it. None: the order of the data tells the row (see
            Notes). Defaults to `None`.
        path: Str or path, a directory. Each quantity is written to a `.npy` file there
            after each epoch, and what is returned is a part of the file
            (`numpy.memmap`). On several workers it is a folder `worker_0`, `worker_1`
            ... in there. None: everything is kept in memory. Defaults to `None`.

    Attributes:
        loss: Array of float32, `(epochs, num_examples)`, in the order of the data set:
            what each update minimised, with `sample_weight`, `class_weight`, `add_loss`
            and regularizers in it.
        unweighted_loss: The same without those: the loss of `compile` alone. It ranks
            examples. Where `compile` got no loss, or the model has a `compute_loss` of
            its own, it is `loss`.
        gradient_norm: Array of float32, `(epochs, num_examples)`.
        prediction: Array `(epochs, num_examples, ...)`, or the structure of the model's
            outputs with such arrays in it.
        visited: Array of int64, `(epochs, num_examples)`: how many updates were made
            before the example's own, in all of training. -1 where it was not visited.

    Raises:
        TypeError: `gradient_norm` or `prediction` is no bool, `id` no string or int,
            `path` no string; in `fit`, an optimizer that is no `SGDPlus` with
            `examples_per_update`, or ids that are no integers.
        ValueError: in `fit`, data whose rows are not known, or ids that are no rows.
        RuntimeError: a second log for one optimizer; a quantity that is not kept.
        NotImplementedError: in `fit`, `compile(jit_compile=True)` with
            `steps_per_execution`; outputs whose shape varies, with `prediction=True`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_sgd_plus import ExampleLog, SGDPlus

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 4)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("float32")
    y[7] = 1 - y[7]  # a wrong label
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
    model.compile(SGDPlus(0.1, seed=1), "binary_crossentropy")
    log = ExampleLog()
    model.fit(x, y, batch_size=100, epochs=5, shuffle=False, callbacks=[log])
    print(log.loss.shape, log.unweighted_loss.mean(axis=0).argmax())  # (5, 1000) 7
    ```

    Notes:
        - Rows are known for arrays and `SeededArrays` with `fit(shuffle=False)`, which
          leaves the order inside batches to the optimizer, and for a `tf.data.Dataset`
          that does not shuffle: there a row is a place in the stream.
        - Only finished epochs are kept. A later `fit` with the same log begins anew.
        - With `examples_per_update=k` each example has its group's loss and norm.
        - Replicas of `tf.distribute` walk their parts of a batch at the same time:
          `visited` is then the number of updates of all of them before the batch, and
          of the example's own replica in it.
        - Each of several workers keeps its own examples; `gather()` adds the others.
        - An example that `nonfinite="skip"` left out is NaN, with its place in
          `visited`.
        - In epoch e the loss of an example is that before the model has seen it for the
          (e + 1)-th time: in the first epoch it is one of new data.
        - `ExactResume` saves the records, and goes on with them.
        - Without a `fit`, `start(model)` records what `train_on_batch` trains on, and
          `last_batch()` returns it.

    References:
        - [Toneva et al., 2019](https://arxiv.org/abs/1812.05159) (forgetting events)
        - [Northcutt et al., 2021](https://arxiv.org/abs/1911.00068) (wrong labels)
    """

    __module__ = "keras_sgd_plus"  # pickles name it, wherever it stands

    def __init__(
        self,
        gradient_norm: bool = False,
        prediction: bool = False,
        *,
        id: str | int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(gradient_norm, prediction, id, path)
        self._wanted = Wanted(gradient_norm, prediction, id)
        self._path = None if path is None else os.fspath(path)
        # `ExactResume` saves them.
        self.records = LogRecords(self._folder, self._take)
        self._last: BatchRecord | None = None
        self._structure: Any = None  # of the model's outputs
        self._rows: Rows | None = None  # in `fit`, as what follows
        self._recorder: Any = None
        self._optimizer: Any = None

    def _forget_run(self) -> None:
        if self._optimizer is not None:
            records.stop_recording(self._optimizer)
        self._structure = self._outputs()
        self._rows = self._recorder = self._optimizer = None

    def __getstate__(self) -> dict[str, object]:
        """A copy has the records, and neither the model nor the run."""
        of_run = dict.fromkeys(("_model", "_rows", "_recorder", "_optimizer"))
        return {**vars(self), **of_run, "_structure": self._outputs()}

    def start(self, model: Model) -> None:
        """Records the batches that a model trains on from now on, without a `fit`.

        Args:
            model: compiled with an `SGDPlus`. Then `train_on_batch` or
                `optimizer.train_step`, called outside any `tf.function`.
        """
        self._rows = self._last = None
        self._start(model)

    def stop(self) -> None:
        """Ends what `start` began."""
        self._take()
        self._forget_run()

    def last_batch(self) -> dict[str, Any]:
        """The records of the last batch, in the order in which it was handed over.

        Returns:
            A dict of arrays `(num_examples, ...)`: "loss", "unweighted_loss" and
            "visited", and those that were asked for.
        """
        self._take()
        if self._last is None:
            raise RuntimeError(
                "ExampleLog.last_batch must be called after a batch. Received: none "
                "yet. Call start(model), and then model.train_on_batch."
            )
        last = self._last
        inverse = np.argsort(last.positions)
        found: dict[str, Any] = {n: a[inverse] for n, a in last.values.items()}
        if self._wanted.prediction:
            outputs = [part[inverse] for part in last.outputs]
            found["prediction"] = self._packed(outputs)
        return found

    @property
    def loss(self) -> np.ndarray:
        """(epochs, num_examples) float32: what each update minimised."""
        return self.records.array("loss")

    @property
    def unweighted_loss(self) -> np.ndarray:
        """(epochs, num_examples) float32: the loss of `compile`, without weights."""
        return self.records.array("unweighted_loss")

    @property
    def gradient_norm(self) -> np.ndarray:
        """(epochs, num_examples) float32: the Euclidean norm of each gradient."""
        _check_kept("gradient_norm", self._wanted.gradient_norm)
        return self.records.array("gradient_norm")

    @property
    def prediction(self) -> Any:
        """(epochs, num_examples, ...): the outputs of the model before each update."""
        _check_kept("prediction", self._wanted.prediction)
        names = [n for n in self.records.names() if n.startswith(PREDICTION.format(""))]
        if not names:
            return self.records.array(PREDICTION.format(0))
        return self._packed(
            [self.records.array(PREDICTION.format(i)) for i in range(len(names))]
        )

    @property
    def visited(self) -> np.ndarray:
        """(epochs, num_examples) int64: the updates before each example's, or -1."""
        return self.records.array("visited")

    def gather(self) -> None:
        """Adds the rows of the other workers of `tf.distribute` to all arrays.

        Each worker keeps the examples that it has visited; in the rows of others it has
        NaN, and -1 in `visited`. Afterwards all have all rows, `(epochs, num_examples,
        ...)`. Every worker must call it, at the same place: after `fit`, or in a
        callback at the end of an epoch. In one process it changes nothing.

        Raises:
            ValueError: a row that two workers have visited.
            RuntimeError: a worker that cannot be reached.
        """
        current = self._strategy()
        if current is not None and replicas.has_workers(current):
            with replicas.lost_workers(current):
                self.records.gather(lambda part: replicas.gathered_bytes(current, part))

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row per epoch and example.

        Returns:
            Columns "epoch", "row", "visited", "loss", "unweighted_loss" and, if it was
            asked for, "gradient_norm"; without examples that were not visited.
        """
        import pandas

        visited = self.visited
        epoch, row = np.nonzero(visited >= 0)
        columns = {"epoch": epoch, "row": row, "visited": visited[epoch, row]}
        for name in self._wanted.columns:
            columns[name] = self.records.array(name)[epoch, row]
        return pandas.DataFrame(columns)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begins to record; forgets an earlier `fit`."""
        model: Any = self.model
        run = fits.of(model)
        self._rows = Rows(run, self._wanted.id is not None, self._strategy())
        params: Any = self.params
        first = 0 if run is None else run.initial_epoch
        self.records.begin((params.get("epochs") or 1) - first)
        self._last = None
        self._start(model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Begins the records of an epoch."""
        self.records.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keeps the records of an epoch."""
        self._take()
        self.records.end_epoch()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Ends to record."""
        self.stop()
        self.records.end()

    def _start(self, model: Model) -> None:
        optimizer = unwrap(getattr(model, "optimizer", None))
        _check_recordable(optimizer)
        self._recorder = records.start_recording(optimizer, self._wanted, self._receive)
        self._optimizer = optimizer
        if (run := fits.of(model)) is not None:  # an error may end it
            run.at_end.callback(self._forget_run)

    def _strategy(self) -> Strategy | None:
        # That of the model in `fit`, or None before there is one.
        model: Any = self.model
        return None if model is None else model.distribute_strategy

    def _folder(self) -> str | None:
        current = self._strategy()
        if self._path is None or current is None or not replicas.has_workers(current):
            return self._path
        return os.path.join(self._path, f"worker_{replicas.worker(current)}")

    def _take(self) -> None:
        # What is still in the variables of the recorder.
        if self._optimizer is not None:
            records.hand_on(self._optimizer)

    def _receive(self, batch: BatchRecord) -> None:
        self._last = batch
        if self._rows is not None:
            self.records.put(self._rows, batch)

    def _packed(self, outputs: list[np.ndarray]) -> Structure:
        structure = self._outputs()
        if structure is None and len(outputs) == 1:
            return outputs[0]
        return keras.tree.pack_sequence_as(structure, outputs)

    def _outputs(self) -> Any:
        # The structure of the model's outputs, as far as it is known.
        return self._structure if self._recorder is None else self._recorder.structure


def _check_arguments(
    gradient_norm: object, prediction: object, id: object, path: object
) -> None:
    for name, value in {
        "gradient_norm": gradient_norm,
        "prediction": prediction,
    }.items():
        if not isinstance(value, bool):
            raise TypeError(
                f"`{name}` must be a bool. Received: {name}={settings.shown(value)}. "
                f"Use ExampleLog({name}=True) to keep that quantity."
            )
    is_id = isinstance(id, (str, int)) and not isinstance(id, bool) and id != ""
    if id is not None and not is_id:
        raise TypeError(
            "`id` must be a key of the inputs, the number of a column, or None. "
            f'Received: id={settings.shown(id)}. Use id="row" for '
            'x={..., "row": rows}, or id=0 if the first column of x has the rows.'
        )
    if path is not None and (
        not isinstance(path, (str, os.PathLike)) or not os.fspath(path)
    ):
        raise TypeError(
            "`path` must be a str or a path, or None. Received: "
            f"path={settings.shown(path)}. Name a directory for this log alone."
        )


def _check_recordable(optimizer: Optimizer) -> None:
    if per_example(optimizer) is None:
        kind = type(optimizer).__name__
        if is_ours(optimizer):
            kind = f"{kind} with examples_per_update=None"
        raise TypeError(
            "ExampleLog must be used with an SGDPlus, whose loop sees each example. "
            f"Received: {kind}. Compile the model with SGDPlus(...)."
        )


def _check_kept(name: str, is_kept: bool) -> None:
    if not is_kept:
        raise RuntimeError(
            f"ExampleLog keeps `{name}` only if it is asked for. Received: "
            f"ExampleLog({name}=False). Use ExampleLog({name}=True)."
        )
