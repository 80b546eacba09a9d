"""Keras's callbacks: what they see, decide, write and restore, as at `batch_size=1`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.twins import (
    BATCH_SIZE,
    Interrupt,
    Interrupted,
    Pair,
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)

N = 30
X, Y = dense_data(N)
VALIDATION = dense_data(9, seed=8)  # another function of x: its loss does not fall long
ENDS = (7, 14, 21, 28, 30)  # examples seen at the end of each of our batches
NO_XLA = {
    "jit_compile": False
}  # where nobody keeps a weight, which XLA writes in place

Callback = keras.callbacks.Callback


class Seen:
    """What a `LambdaCallback` is told, with copies of the state at that moment."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.batches: list[tuple[dict[str, float], list[np.ndarray]]] = []
        self.epochs: list[list[np.ndarray]] = []
        self.callback: Any = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self.events.append("train begins"),
            on_train_end=lambda logs: self.events.append("train ends"),
            on_epoch_begin=lambda epoch, logs: self.events.append(f"epoch {epoch}"),
            on_epoch_end=self._end_epoch,
            on_train_batch_begin=lambda batch, logs: self.events.append(f"{batch}"),
            on_train_batch_end=self._end_batch,
        )

    def _end_epoch(self, epoch: int, logs: Any) -> None:
        self.events.append(f"epoch {epoch} ends")
        self.epochs.append(state_of(self.callback.model))

    def _end_batch(self, batch: int, logs: Any) -> None:
        self.events.append(f"{batch} ends")
        self.batches.append((dict(logs), state_of(self.callback.model)))


def state_of(model: Any) -> list[np.ndarray]:
    """Copies of the weights, then of the optimizer's variables."""
    variables = (*model.trainable_variables, *model.optimizer.variables)
    return [np.array(v.numpy()) for v in variables]


def pair_with(
    make: Callable[[], list[Callback]], **kwargs: Any
) -> tuple[Pair, list[Any], list[Any]]:
    """A pair trained with validation, and the callbacks of ours and of theirs."""
    made: list[list[Any]] = []
    fit = {"validation_data": VALIDATION, **kwargs.pop("fit", {})}

    def fit_with_callbacks() -> dict[str, Any]:
        made.append(make())
        return {**fit, "callbacks": made[-1]}

    pair = train_pair(dense_model, X, Y, fit=fit_with_callbacks, **kwargs)
    ours, theirs = made
    return pair, ours, theirs


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


# --- What is decided at the end of an epoch. ---


def test_early_stopping_restores_the_best_weights(engagements: list[str]) -> None:
    """In the epoch in which Keras stops, the weights that Keras restores.

    With XLA, which writes weights in place: those that the callback keeps must not
    change with them.
    """
    seen = Seen()  # of both, ours first
    pair, (ours, _), (theirs, _) = pair_with(
        lambda: [
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
            seen.callback,
        ],
        fit={"epochs": 9},
    )
    assert_same(pair)
    best, stopped = theirs.best_epoch, theirs.stopped_epoch
    assert (ours.best_epoch, ours.stopped_epoch) == (best, stopped)
    assert 0 < best < stopped < 8
    assert_engaged(pair, engagements, (stopped + 1) * N)
    weights = pair.ours.get_weights()
    assert_equal(weights, seen.epochs[best][: len(weights)])
    assert np.abs(weights[0] - seen.epochs[stopped][0]).max() > 1e-3


def _by_epoch() -> Callback:
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 1))


def _on_plateau() -> Callback:
    return keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=0.2)


RATES = {"scheduler": _by_epoch, "plateau": _on_plateau}


@pytest.mark.parametrize("make", RATES.values(), ids=list(RATES))
def test_learning_rate_by_epoch(
    make: Callable[[], Callback], engagements: list[str]
) -> None:
    fit = {"epochs": 5, "validation_data": None}
    pair, *_ = pair_with(lambda: [make()], fit=fit, plus=NO_XLA)
    assert_same(pair)
    assert_engaged(pair, engagements, 5 * N)
    assert pair.our_logs["learning_rate"] == pair.their_logs["learning_rate"]
    assert len(set(pair.our_logs["learning_rate"])) > 2
    assert len(engagements) == 1  # a new rate needs no new trace


@pytest.mark.parametrize(
    ("swap_on_epoch", "plus"),
    [(False, {}), (True, NO_XLA)],
    ids=["for_validation", "on_epoch"],
)
def test_swap_ema_weights(
    swap_on_epoch: bool, plus: dict[str, Any], engagements: list[str]
) -> None:
    """Validation sees the averages, training goes on with the weights themselves."""
    pair, *_ = pair_with(
        lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)],
        sgd={"use_ema": True, "ema_momentum": 0.95},
        fit={"epochs": 3},
        plus=plus,
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 3 * N)
    # In the end `fit` itself writes the averages to the model.
    averaged = pair.ours.evaluate(*VALIDATION, verbose=0)
    assert pair.our_logs["val_loss"][-1] == pytest.approx(averaged, rel=1e-6)


# --- What is seen and written on the way; a batch is one compiled call. ---

EPOCHS = 5


@dataclass
class Watched:
    """A pair, and for ours and theirs what was seen and the folder written to."""

    pair: Pair
    seen: list[Seen]
    folders: list[Path]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Trained with every callback that only looks, so that one training does."""
    folders = [tmp_path_factory.mktemp(who) for who in ("ours", "theirs")]
    seen = [Seen(), Seen()]
    runs = iter(zip(folders, seen, strict=True))

    def callbacks() -> list[Any]:
        folder, seen = next(runs)
        best, board = str(folder / "best" / "{epoch}.keras"), str(folder / "board")
        return [
            keras.callbacks.CSVLogger(str(folder / "logs.csv")),
            keras.callbacks.ModelCheckpoint(best, save_best_only=True),
            # Keras before 3.15 writes every batch, whatever `update_freq` says.
            keras.callbacks.TensorBoard(board, update_freq=2 if seen is ours else 1),
            seen.callback,
        ]

    ours = seen[0]
    pair, *_ = pair_with(
        callbacks, fit={"epochs": EPOCHS}, compile={"metrics": ["mae"]}, plus=NO_XLA
    )
    assert_same(pair)
    # That many updates from 5 batches an epoch: the loop made them.
    assert int(pair.ours.optimizer.iterations) == EPOCHS * N
    return Watched(pair, seen, folders)


def test_a_callback_sees_each_batch(watched: Watched) -> None:
    """Hooks are called once per batch, with the logs and weights of just then."""
    ours, theirs = watched.seen
    expected = ["train begins"]
    for epoch in range(EPOCHS):
        batches = [text for i in range(len(ENDS)) for text in (f"{i}", f"{i} ends")]
        expected += [f"epoch {epoch}", *batches, f"epoch {epoch} ends"]
    assert ours.events == [*expected, "train ends"]
    places = [N * epoch + end - 1 for epoch in range(EPOCHS) for end in ENDS]
    assert len(theirs.batches) == EPOCHS * N
    for (logs, state), place in zip(ours.batches, places, strict=True):
        same_logs, same_state = theirs.batches[place]
        assert set(logs) == {"loss", "mae"}
        assert logs == pytest.approx(same_logs, rel=2e-5)
        for a, b in zip(state, same_state, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_csv_logger(watched: Watched) -> None:
    ours, theirs = (
        [{name: float(text) for name, text in row.items()} for row in rows]
        for rows in (
            csv.DictReader((folder / "logs.csv").read_text().splitlines())
            for folder in watched.folders
        )
    )
    assert [row["epoch"] for row in ours] == list(range(EPOCHS))
    assert set(ours[0]) == {"epoch", "loss", "mae", "val_loss", "val_mae"}
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    assert [row["loss"] for row in ours] == watched.pair.our_logs["loss"]


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard would show: tag -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, {})[event.step] = number
    return found


def test_tensorboard_by_batches(watched: Watched) -> None:
    """Its step counts batches, so a point of ours is that of the batch's last example.

    `iterations`, over which it shows the validation, counts examples in both. At the
    end of an odd number of batches Keras leaves out what belongs to the epoch, too.
    """
    ours, theirs = (_scalars(folder / "board" / "train") for folder in watched.folders)
    last = EPOCHS * len(ENDS)
    for tag in ("batch_loss", "batch_mae"):
        batches, examples = ours.pop(tag), theirs.pop(tag)
        assert set(range(2, last + 1, 2)) <= set(batches) <= set(range(1, last + 1))
        assert len(examples) == EPOCHS * N
        for step, value in batches.items():
            epoch, batch = divmod(step - 1, len(ENDS))
            same_value = examples[N * epoch + ENDS[batch]]
            assert value == pytest.approx(same_value, rel=2e-5), step
    assert set(ours) == {"epoch_loss", "epoch_mae", "epoch_learning_rate"}
    _assert_same_points(ours, theirs)
    ours, theirs = (
        _scalars(folder / "board" / "validation") for folder in watched.folders
    )
    _assert_same_points(ours, theirs)
    iterations = [N * (epoch + 1) for epoch in range(EPOCHS)]
    assert sorted(theirs["evaluation_loss_vs_iterations"]) == iterations


def _assert_same_points(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        same_points = {step: theirs[tag][step] for step in points}
        assert points and points == pytest.approx(same_points, rel=2e-5), tag


def test_checkpoint_of_the_best(watched: Watched) -> None:
    """Saved in the epochs in which Keras saves, with the state of then."""
    folders = [folder / "best" for folder in watched.folders]
    ours, theirs = (sorted(int(p.stem) for p in folder.iterdir()) for folder in folders)
    assert ours == theirs
    assert 1 < len(ours) < EPOCHS
    best = keras.models.load_model(folders[0] / f"{ours[-1]}.keras")
    assert_equal(state_of(best), watched.seen[0].epochs[ours[-1] - 1])


# --- What stops inside an epoch. ---


class StopAfter(Callback):
    """Asks `fit` to stop after a batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.last = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.last:
            self.model.stop_training = True


def test_stop_inside_an_epoch(engagements: list[str]) -> None:
    """The batch that runs is walked to its end, the next one never begins."""
    pair = train_pair(
        dense_model,
        X,
        Y,
        fit={"epochs": 3},
        our_fit={"callbacks": [StopAfter(1)]},
        their_fit={"callbacks": [StopAfter(2 * BATCH_SIZE - 1)]},
        plus=NO_XLA,
    )
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * BATCH_SIZE)
    assert len(pair.our_logs["loss"]) == 1
    pair.ours.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)  # and nothing is left behind
    assert_engaged(pair, engagements, 2 * BATCH_SIZE + N)


@pytest.mark.parametrize("raise_error", [False, True])
def test_terminate_on_nan(raise_error: bool, engagements: list[str]) -> None:
    """The callback looks at a batch's loss, so the batch with the NaN is the last."""
    x = X.copy()
    x[BATCH_SIZE + 2] = np.nan  # in the second batch of five
    seen = Seen()
    model = dense_model()
    model.compile(SGDPlus(0.02, order="given", **NO_XLA), "mse")
    terminate = keras.callbacks.TerminateOnNaN(raise_error=raise_error)
    arguments: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "epochs": 3,
        "shuffle": False,
        "verbose": 0,
        "callbacks": [seen.callback, terminate],
    }
    if raise_error:
        with pytest.raises(RuntimeError, match="NaN or Inf loss .* at batch 1"):
            model.fit(x, Y, **arguments)
    else:
        history = model.fit(x, Y, **arguments).history
        assert len(history["loss"]) == 1 and np.isnan(history["loss"]).all()
    assert ("train ends" in seen.events) is not raise_error
    assert [np.isnan(logs["loss"]) for logs, _ in seen.batches] == [False, True]
    assert int(model.optimizer.iterations) == 2 * BATCH_SIZE
    assert engagements == [model.name]


# --- What is written to go on from. ---


def _with_dropout(seed: int = 1) -> Any:
    """A model whose every kind of state matters: velocities, order, random numbers."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(6, activation="tanh"), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(2)])
    model.compile(SGDPlus(0.02, 0.9, seed=4, **NO_XLA), "mse")
    return model


def _fit(model: Any, **kwargs: Any) -> Any:
    arguments = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, **arguments)


def _seeds(model: Any) -> list[np.ndarray]:
    """Copies of the states of the seed generators."""
    return [
        np.array(v.numpy()) for v in model.non_trainable_variables if "seed" in v.path
    ]


def _restore_seeds(model: Any, seeds: list[np.ndarray]) -> None:
    """Does by hand what no saver does, and makes sure that none did."""
    (state,) = (v for v in model.non_trainable_variables if "seed" in v.path)
    (seed,) = seeds
    assert seed[1] > 0 and int(state[1]) == 0  # the number of draws, lost
    state.assign(seed)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Seen, list[list[np.ndarray]]]:
    """Three epochs of `_with_dropout`; and the seeds at the end of each."""
    seen, seeds = Seen(), []
    model = _with_dropout()
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seeds.append(_seeds(model))
    )
    _fit(model, epochs=3, callbacks=[seen.callback, note])
    return seen, seeds


def test_checkpoint_of_the_model(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """What it wrote after the first epoch goes on as the uninterrupted run did.

    A `.keras` file restores the model, its loss and weights, and the optimizer with
    its config (the seed of the order is there) and variables. It restores neither the
    epoch, which `initial_epoch` has to say, nor the state of seed generators.
    """
    path = str(tmp_path / "{epoch}.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    model = _with_dropout()
    _fit(model, epochs=1, callbacks=[checkpoint])
    resumed = keras.models.load_model(tmp_path / "1.keras")
    seen, seeds = uninterrupted
    assert type(resumed.optimizer) is SGDPlus
    assert resumed.optimizer.get_config() == model.optimizer.get_config()
    assert_equal(state_of(resumed), seen.epochs[0])
    _restore_seeds(resumed, seeds[0])
    assert _fit(resumed, initial_epoch=1, epochs=3).epoch == [1, 2]
    assert_equal(state_of(resumed), seen.epochs[2])
    assert set(engagements) == {model.name}  # a loaded model keeps its name


def test_checkpoint_of_weights_by_batches(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """The weights of inside an epoch, and with them the optimizer's variables.

    They go into a model that is compiled alike: `.weights.h5` holds no config. The
    epoch, the batch and the state of seed generators are not in it either.
    """
    path = str(tmp_path / "{epoch}-{batch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, save_weights_only=True, save_freq=2
    )
    _fit(_with_dropout(), epochs=2, callbacks=[checkpoint])
    names = sorted(file.name.split(".")[0] for file in tmp_path.iterdir())
    assert names == ["1-2", "1-4", "2-1", "2-3", "2-5"]  # every second of all batches
    seen, _ = uninterrupted
    for name in names:
        epoch, batch = map(int, name.split("-"))
        again = _with_dropout(seed=2)
        again.optimizer.build(again.trainable_variables)
        again.load_weights(tmp_path / f"{name}.weights.h5")
        _, state = seen.batches[len(ENDS) * (epoch - 1) + batch - 1]
        assert_equal(state_of(again), state)
    assert len(engagements) == 1


def _backup(folder: Path, **kwargs: Any) -> Callback:
    return keras.callbacks.BackupAndRestore(str(folder / "backup"), **kwargs)


def _interrupted(folder: Path, where: tuple[int, int], **kwargs: Any) -> None:
    with pytest.raises(Interrupted):
        _fit(
            _with_dropout(),
            epochs=3,
            callbacks=[_backup(folder, **kwargs), Interrupt(*where)],
        )


def test_backup_and_restore(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """The epoch that was interrupted is started over, from the state at its beginning.

    Restored are weights, the optimizer's variables and the number of the epoch. The
    optimizer's config is the new model's: without a `seed` of its own the order would
    be another one. The state of seed generators is not restored.
    """
    _interrupted(tmp_path, where=(2, 1))
    seen, seeds = uninterrupted
    resumed = _with_dropout()
    resumed.set_weights([np.ones_like(w) for w in resumed.get_weights()])
    restored = []

    def check(logs: Any) -> None:  # after the backup's own `on_train_begin`
        restored.extend(state_of(resumed))
        _restore_seeds(resumed, seeds[1])

    note = keras.callbacks.LambdaCallback(on_train_begin=check)
    history = _fit(resumed, epochs=3, callbacks=[_backup(tmp_path), note])
    assert history.epoch == [2]
    assert_equal(restored, seen.epochs[1])
    assert_equal(state_of(resumed), seen.epochs[2])
    assert not (tmp_path / "backup").exists()  # deleted, since all is done
    assert len(engagements) == 2  # the interrupted model and the resumed one


def test_backup_by_batches_starts_the_epoch_over(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """Restored is the state of inside the epoch, not the place in it.

    So Keras walks the examples again that came before; the count of updates says so.
    """
    _interrupted(tmp_path, where=(1, 3), save_freq=2)
    about = json.loads((tmp_path / "backup" / "training_metadata.json").read_text())
    assert about == {"epoch": 1, "batch": 2}
    resumed = _with_dropout(seed=2)
    restored = []
    note = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: restored.extend(state_of(resumed))
    )
    history = _fit(resumed, epochs=3, callbacks=[_backup(tmp_path), note])
    seen, _ = uninterrupted
    assert_equal(restored, seen.batches[len(ENDS) + 2][1])
    assert history.epoch == [1, 2]
    assert int(resumed.optimizer.iterations) == N + ENDS[2] + 2 * N
    assert len(engagements) == 2
