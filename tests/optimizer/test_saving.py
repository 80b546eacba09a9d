"""Saved state comes back, moves between SGD and SGDPlus, and training goes on."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.paths import ROOT
from tests.support.saved import (
    MOMENTUM,
    PLAIN,
    SGD,
    batch_size_of,
    compiled,
    fit,
    state_of,
)
from tests.support.tiers import matrix_rows, tiered_keys
from tests.support.twins import dense_data, linear_model

STATE_OF_LINEAR = 2  # kernel and bias: with momentum, a velocity each
_GO_ON = """
import sys
import keras
import keras_sgd_plus
import numpy as np

for folder in sys.argv[1:]:
    data = np.load(folder + "/data.npz")
    model = keras.models.load_model(folder + "/model.keras")
    assert type(model.optimizer) is keras_sgd_plus.SGDPlus
    model.fit(data["x"], data["y"], batch_size=7, shuffle=False, verbose=0)
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    np.savez(folder + "/after.npz", *state)
"""
RESUMED: dict[str, dict[str, Any]] = {
    "given": {"order": "given"},
    "reshuffle": {"order": "reshuffle", "seed": 4},
    "derived_seed": {},
    "accumulation_and_ema": {
        "gradient_accumulation_steps": 4,  # 15 updates: saved in the middle of a sum
        "use_ema": True,
        "ema_momentum": 0.8,
    },
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """State after uninterrupted training, and after load_model in a new process."""
    folders, whole = {}, {}
    x, y = dense_data()
    for name, options in RESUMED.items():
        keras.utils.set_random_seed(1)
        model = linear_model()
        model.compile(SGDPlus(**MOMENTUM, **options), loss="mse")
        fit(model, 0, 15, batch_size=7)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save(folders[name] / "model.keras")
        np.savez(folders[name] / "data.npz", x=x[15:], y=y[15:])
        fit(model, 15, 30, batch_size=7)
        whole[name] = state_of(model)
    command = [sys.executable, "-c", _GO_ON, *map(str, folders.values())]
    subprocess.run(command, check=True, cwd=ROOT)
    split = {}
    for name, folder in folders.items():
        with np.load(folder / "after.npz") as after:
            split[name] = [after[key] for key in after.files]
    return {name: (whole[name], split[name]) for name in RESUMED}


@pytest.mark.matrix
@pytest.mark.parametrize("name", RESUMED)
def test_load_model_in_a_new_process_goes_on(
    name: str, resumed: dict[str, Any]
) -> None:
    whole, split = resumed[name]
    assert len(whole) == len(split)
    for a, b in zip(whole, split, strict=True):
        np.testing.assert_array_equal(a, b)
    iterations = int(whole[STATE_OF_LINEAR])  # the optimizer's first variable
    assert iterations == 30


Transfer = Callable[[Any, Any, Path], None]


def _by_own_variables(source: Any, target: Any, path: Path) -> None:
    del path
    store: dict[str, Any] = {}
    source.optimizer.save_own_variables(store)
    target.optimizer.load_own_variables(store)
    target.set_weights(source.get_weights())


def _by_variables(source: Any, target: Any, path: Path) -> None:
    del path
    for old, new in zip(
        [*source.variables, *source.optimizer.variables],
        [*target.variables, *target.optimizer.variables],
        strict=True,
    ):
        new.assign(old)


def _by_weights_file(source: Any, target: Any, path: Path) -> None:
    source.save_weights(path / "source.weights.h5")
    target.load_weights(path / "source.weights.h5")


def _by_keras_file(source: Any, target: Any, path: Path) -> None:
    source.save(path / "source.keras")
    target.load_weights(path / "source.keras")


def _by_checkpoint(source: Any, target: Any, path: Path) -> None:
    written = tf.train.Checkpoint(model=source, optimizer=source.optimizer)
    where = written.write(str(path / "checkpoint"))
    read = tf.train.Checkpoint(model=target, optimizer=target.optimizer).read(where)
    read.assert_existing_objects_matched()


TRANSFERS = {
    "own_variables": _by_own_variables,
    "variables": _by_variables,
    "weights_file": _by_weights_file,
    "keras_file": _by_keras_file,
    "checkpoint": _by_checkpoint,
}


@pytest.fixture(scope="module")
def sgd_throughout() -> list[np.ndarray]:
    return _sgd_throughout("momentum")


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=list(TRANSFERS))
@pytest.mark.parametrize(
    ("before", "after"),
    [(SGD, SGDPlus), *matrix_rows((SGDPlus, SGD), (SGDPlus, SGDPlus))],
    ids=["sgd_to_plus", "plus_to_sgd", "plus_to_plus"],
)
def test_state_moves_and_training_goes_on(
    before: type,
    after: type,
    transfer: Transfer,
    half_trained: dict[type, Any],
    sgd_throughout: list[np.ndarray],
    engagements: list[str],
    tmp_path: Path,
) -> None:
    source, target = half_trained[before], compiled(after, seed=2)
    transfer(source, target, tmp_path)
    for a, b in zip(state_of(source), state_of(target), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(target, 10, 20, batch_size_of(target))
    assert engagements == ([target.name] if after is SGDPlus else [])
    assert int(target.optimizer.iterations) == 20
    for a, b in zip(state_of(target), sgd_throughout, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Each has state that the other optimizer must take over. After 10 updates, a sum of 3
# gradients has one, and the weights have just become their average.
MIGRATED: dict[str, dict[str, Any]] = {
    "momentum": {},
    "nesterov_and_averages": {
        "nesterov": True,
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 5,
    },
    "accumulation": {"gradient_accumulation_steps": 3},
    "schedule": {
        "learning_rate": keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.3)
    },
}
OURS_ALONE = (
    *("examples_per_update", "order", "seed", "nonfinite", "jit_compile"),
    "max_loss_fraction",
)


@functools.cache
def _sgd_throughout(name: str) -> list[np.ndarray]:
    model = compiled(SGD, **MIGRATED[name])
    fit(model, 0, 10, batch_size=1)
    fit(model, 10, 20, batch_size=1)
    return state_of(model)


@pytest.mark.matrix
@pytest.mark.parametrize("name", tiered_keys(MIGRATED))
@pytest.mark.parametrize(
    ("before", "after"), [(SGD, SGDPlus), (SGDPlus, SGD)], ids=["to_plus", "back"]
)
def test_swapping_the_optimizer_of_a_saved_model(
    before: type, after: type, name: str, engagements: list[str], tmp_path: Path
) -> None:
    """Load a model file, compile with the other optimizer, load the state again."""
    path = tmp_path / "model.keras"
    model = compiled(before, **MIGRATED[name])
    fit(model, 0, 10, batch_size_of(model))
    model.save(path)
    config = model.optimizer.get_config()
    config = {key: value for key, value in config.items() if key not in OURS_ALONE}
    plus = PLAIN if after is SGDPlus else {}
    model = keras.models.load_model(path, compile=False)
    model.compile(after.from_config({**config, **plus}), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    fit(model, 10, 20, batch_size_of(model))
    assert type(model.optimizer) is after
    assert len(engagements) == 1
    for a, b in zip(state_of(model), _sgd_throughout(name), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(model.optimizer._iterations) == 20
