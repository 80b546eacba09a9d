"""Clones, pickles and deep copies keep as much as those of SGD."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.saved import (
    SGD,
    batch_size_of,
    compiled,
    fit,
    state_of,
)


def test_clone_model_trains_on_its_own(
    half_trained: dict[type, Any], engagements: list[str]
) -> None:
    model = half_trained[SGDPlus]
    before = state_of(model)
    clone = keras.models.clone_model(model)
    clone.compile(SGDPlus.from_config(model.optimizer.get_config()), loss="mse")
    clone.set_weights(model.get_weights())
    fit(clone, 10, 20, batch_size=5)
    assert set(engagements) == {clone.name}
    assert int(clone.optimizer.iterations) == 10
    for a, b in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def _kept(model: Any, again: Any) -> list[bool]:
    pairs = zip(state_of(model), state_of(again), strict=False)
    return [np.array_equal(a, b) for a, b in pairs]


def _whole_model_h5(model: Any, path: Path) -> Any:
    model.save(path / "model.h5")
    again = keras.models.load_model(path / "model.h5")
    live = model.get_compile_config()
    return {
        "compiled": again.compiled,
        "type": type(again.optimizer) is type(model.optimizer),
        "kept": _kept(model, again),
        "count": len(again.optimizer.variables),
        "live config": live and sorted(live),
    }


def _pickle_optimizer(model: Any, path: Path) -> Any:
    del path
    return _copied(model.optimizer, pickle.loads(pickle.dumps(model.optimizer)))


def _deepcopy_optimizer(model: Any, path: Path) -> Any:
    del path
    return _copied(model.optimizer, copy.deepcopy(model.optimizer))


def _copied(optimizer: Any, again: Any) -> Any:
    both = zip(optimizer.variables, again.variables, strict=False)
    return {
        "type": type(again) is type(optimizer),
        "config": again.get_config() == optimizer.get_config(),
        "built": again.built,
        "iterations": int(again.iterations),
        "count": len(again.variables),
        "kept": [np.array_equal(a.numpy(), b.numpy()) for a, b in both],
    }


def _pickle_model(model: Any, path: Path) -> Any:
    del path
    again = pickle.loads(pickle.dumps(model))
    kept = _kept(model, again)
    return again.compiled, kept, _copied(model.optimizer, again.optimizer)


def _deepcopy_model(model: Any, path: Path) -> Any:
    del path
    again = copy.deepcopy(model)
    kept = _kept(model, again)
    return again.compiled, kept, _copied(model.optimizer, again.optimizer)


LOSSY = {
    "h5": _whole_model_h5,
    "pickle_optimizer": _pickle_optimizer,
    "deepcopy_optimizer": _deepcopy_optimizer,
    "pickle_model": _pickle_model,
    "deepcopy_model": _deepcopy_model,
}


@pytest.mark.parametrize("way", LOSSY.values(), ids=list(LOSSY))
def test_same_outcome_as_sgd(way: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    outcomes = []
    for cls in (SGDPlus, SGD):
        model = compiled(cls)
        fit(model, 0, 10, batch_size_of(model))
        name = model.optimizer.name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # Keras says what it lost
            outcome = way(model, tmp_path)
        texts = [str(w.message).replace(name, "<name>") for w in caught]
        outcomes.append((outcome, texts))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("way", [pickle.loads, copy.deepcopy], ids=["pickle", "copy"])
def test_copied_model_still_steps_per_example(
    way: Any, half_trained: dict[type, Any], engagements: list[str]
) -> None:
    model = half_trained[SGDPlus]
    again = way(pickle.dumps(model) if way is pickle.loads else model)
    before = int(again.optimizer.iterations)
    fit(again, 10, 20, batch_size=5)
    assert engagements == [again.name]
    assert int(again.optimizer.iterations) == before + 10
