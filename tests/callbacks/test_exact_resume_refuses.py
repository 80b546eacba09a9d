"""`ExactResume` refuses what it cannot replay or does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus
from tests.support.messages import normalises
from tests.support.resume_run import fit_small, small_model
from tests.support.twins import dense_data, dense_model, linear_model

pytestmark = normalises
X, Y = dense_data()


def _other_model(directory: Path) -> Any:
    fit_small(small_model(), directory)
    keras.utils.set_random_seed(3)
    model = dense_model(units=7)
    model.compile(SGDPlus(0.02, momentum=0.9), "mse")
    return model


def _saved(directory: Path, **kwargs: Any) -> Any:
    fit_small(small_model(), directory, **kwargs)
    return small_model()


def _plain_model(**settings: Any) -> Any:
    return small_model(SGDPlus(0.02, jit_compile=False, **settings))


def _saved_with(directory: Path, model: Any = None, **settings: Any) -> Any:
    fit_small(_plain_model(**settings), directory)
    return model or _plain_model()


def _larger_model_there(directory: Path) -> Any:
    fit_small(small_model(), directory)
    model = linear_model()
    model.compile(SGDPlus(0.02, momentum=0.9, jit_compile=False), "mse")
    return model


def _seeded(seed: int) -> dict[str, Any]:
    data = SeededArrays(X, Y, batch_size=5, seed=seed)
    return {"x": data, "y": None, "batch_size": None}


def _fit_dataset(model: Any, directory: Path, size: int) -> None:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)
    fit_small(model, directory, x=data, y=None, batch_size=None)


def _saved_from_dataset(directory: Path, size: int) -> Any:
    _fit_dataset(small_model(), directory, size)
    return small_model()


def _unbuilt(directory: Path) -> Any:
    fit_small(small_model(), directory)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(SGDPlus(0.02), "mse")
    return model


def _dataset(**shuffle: Any) -> tf.data.Dataset:
    slices = tf.data.Dataset.from_tensor_slices(dense_data())
    return slices.shuffle(30, **shuffle).batch(5)


def _unseeded(model: Any, directory: Path) -> None:
    # The fixture sets a global seed, with which the order would be the same each time.
    tf.random.set_seed(None)
    dataset = _dataset(reshuffle_each_iteration=False)
    fit_small(model, directory, x=dataset, y=None, batch_size=None)


Row = tuple[Callable[[Path], Any], Callable[[Any, Path], Any], type[Exception], str]
REFUSED: dict[str, Row] = {
    "shuffled_arrays": (
        lambda d: small_model(),
        lambda m, d: fit_small(m, d, shuffle=True),
        ValueError,
        r"Use fit\(shuffle=False\)",
    ),
    "shuffled_pydataset": (
        lambda d: small_model(),
        lambda m, d: fit_small(
            m, d, x=SeededArrays(*dense_data()), y=None, batch_size=None, shuffle=True
        ),
        ValueError,
        r"Use fit\(shuffle=False\)",
    ),
    "reshuffled_dataset": (
        lambda d: small_model(),
        lambda m, d: fit_small(m, d, x=_dataset(seed=1), y=None, batch_size=None),
        ValueError,
        r"Use shuffle\(..., seed=..., reshuffle_each_iteration=False\)",
    ),
    "unseeded_dataset": (
        lambda d: small_model(),
        _unseeded,
        ValueError,
        r"Use shuffle\(..., seed=...",
    ),
    "steps_of_finite_data": (
        lambda d: small_model(),
        lambda m, d: fit_small(m, d, steps_per_epoch=3),
        ValueError,
        r"Use dataset.repeat\(\)",
    ),
    "stock_sgd": (
        lambda d: small_model(keras.optimizers.SGD(0.02)),
        fit_small,
        TypeError,
        r"Compile the model with SGDPlus\(...\)",
    ),
    "unbuilt": (_unbuilt, fit_small, ValueError, "Begin it with keras.Input"),
    "other_model": (_other_model, fit_small, ValueError, "Name another directory"),
    "other_batches": (
        _saved,
        lambda m, d: fit_small(m, d, batch_size=10),
        ValueError,
        "batch size 5 there, 10 here.*Name another directory",
    ),
    "other_steps": (
        lambda d: _saved_from_dataset(d, 5),
        lambda m, d: _fit_dataset(m, d, 10),
        ValueError,
        "epochs of 6 batches there, of 3 here.*Name another directory",
    ),
    "fewer_examples": (
        _saved,
        lambda m, d: fit_small(m, d, x=X[:29], y=Y[:29]),
        ValueError,
        "examples 30 there, 29 here",
    ),
    "seed_of_arrays": (
        lambda d: _saved(d, **_seeded(1)),
        lambda m, d: fit_small(m, d, **_seeded(2)),
        ValueError,
        "seed of SeededArrays 1 there, 2 here",
    ),
    "larger_model_there": (
        _larger_model_there,
        fit_small,
        ValueError,
        "model with 4 variables there, 2 here; optimizer with 6",
    ),
    "momentum_there": (
        lambda d: _saved_with(d, momentum=0.9),
        fit_small,
        ValueError,
        "optimizer with 6 variables there, 2 here",
    ),
    "averages_there": (
        lambda d: _saved_with(d, use_ema=True),
        fit_small,
        ValueError,
        "optimizer with 6 variables there, 2 here",
    ),
    "momentum_here": (
        lambda d: _saved_with(d, model=small_model()),
        fit_small,
        ValueError,
        "optimizer with 2 variables there, 6 here",
    ),
    "directory": (
        lambda d: small_model(),
        lambda m, d: ExactResume(None),
        TypeError,
        "`directory` must be a str or a path.*Name one",
    ),
    "save_freq": (
        lambda d: small_model(),
        lambda m, d: ExactResume(d, save_freq="batch"),
        TypeError,
        "`save_freq` must be an int >= 1.*Use 1 or more",
    ),
    "max_to_keep": (
        lambda d: small_model(),
        lambda m, d: ExactResume(d, max_to_keep=0),
        ValueError,
        "`max_to_keep` must be an int >= 1.*Use 1 or more",
    ),
    "lengths": (
        lambda d: small_model(),
        lambda m, d: SeededArrays(np.ones((3, 5)), np.ones((4, 2))),
        ValueError,
        "Give every example its target",
    ),
    "no_examples": (
        lambda d: small_model(),
        lambda m, d: SeededArrays(np.ones((0, 5))),
        ValueError,
        "Give every example its target",
    ),
    "batch_size": (
        lambda d: small_model(),
        lambda m, d: SeededArrays(np.ones((3, 5)), batch_size=1.5),
        TypeError,
        "`batch_size` must be an int >= 1",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_refused(key: str, tmp_path: Path) -> None:
    make, trigger, error, fix = REFUSED[key]
    model = make(tmp_path)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(error, match=fix) as raised:
        trigger(model, tmp_path)
    assert type(raised.value) is error
    assert "Received: " in str(raised.value)
    for weight, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(weight, value)
