"""Keras's checkpoints and backups restore weights and counters, but no seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.seen import (
    ENDS,
    NO_XLA,
    Callback,
    N,
    Seen,
    X,
    Y,
    assert_equal,
    state_of,
)
from tests.support.twins import (
    BATCH_SIZE,
    Interrupt,
    Interrupted,
)


def _with_dropout(seed: int = 1) -> Any:
    """A model with every kind of state: velocities, order, random numbers."""
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
    """Restores the seeds, which no saver has restored."""
    (state,) = (v for v in model.non_trainable_variables if "seed" in v.path)
    (seed,) = seeds
    assert seed[1] > 0 and int(state[1]) == 0  # the number of draws, lost
    state.assign(seed)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Seen, list[list[np.ndarray]]]:
    """Three epochs of `_with_dropout`, and the seeds at the end of each."""
    seen, seeds = Seen(), []
    model = _with_dropout()
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seeds.append(_seeds(model))
    )
    _fit(model, epochs=3, callbacks=[seen.callback, note])
    return seen, seeds


@pytest.mark.matrix
def test_checkpoint_of_the_model(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """A loaded checkpoint goes on as the uninterrupted run did.

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


@pytest.mark.matrix
def test_checkpoint_of_weights_by_batches(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """A checkpoint inside an epoch holds the weights and the optimizer's variables.

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


@pytest.mark.matrix
def test_backup_and_restore(
    tmp_path: Path, uninterrupted: Any, engagements: list[str]
) -> None:
    """Keras starts the interrupted epoch over, from the state at its beginning.

    Keras restores weights, the optimizer's variables and the number of the epoch.
    The new model's optimizer keeps its own config: without a `seed` its order would
    differ. Keras does not restore the state of seed generators.
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
    """Keras restores the state inside the epoch, but not the place in it.

    So it trains on the first examples of the epoch again, and counts them again.
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
