"""Callbacks can be pickled and copied, before a `fit`, after it, after an interrupt."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import (
    AverageWeights,
    ExactResume,
    ExampleLog,
    SeededArrays,
    SGDPlus,
)
from tests.support.tiers import tiered_keys
from tests.support.twins import Interrupt, Interrupted, dense_data, linear_model

X, Y = dense_data(20)
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickled": lambda c: pickle.loads(pickle.dumps(c)),
    "copied": copy.copy,
    "deep": copy.deepcopy,
}
MAKERS: dict[str, Callable[[Path], Any]] = {
    "averages": lambda d: AverageWeights(start_epoch=1),
    "resume": lambda d: ExactResume(d / "run", save_freq=2, max_to_keep=2),
    "log": lambda d: ExampleLog(gradient_norm=True, prediction=True),
    "log_files": lambda d: ExampleLog(path=d / "log"),
}


def run(callback: Any, *callbacks: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = linear_model()
    model.compile(SGDPlus(0.01, jit_compile=False), "mse")
    fit = {"batch_size": 5, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[callback, *callbacks], **fit)
    return model


def kept(callback: Any) -> dict[str, Any]:
    """What a callback shows: arguments and records."""
    if not isinstance(callback, ExampleLog):
        names = ("start_epoch", "directory", "save_freq", "max_to_keep")
        return {n: getattr(callback, n) for n in names if hasattr(callback, n)}
    names = ["loss", "unweighted_loss", "visited"]
    if callback._path is None:
        names += ["gradient_norm", "prediction"]
    return {name: np.array(getattr(callback, name)) for name in names}


@pytest.mark.parametrize("how", tiered_keys(COPIES, "deep"))
@pytest.mark.parametrize("kind", tiered_keys(MAKERS, "averages"))
def test_a_copy_is_alike_and_works(kind: str, how: str, tmp_path: Path) -> None:
    original, made = MAKERS[kind](tmp_path), COPIES[how]
    assert kept(made(original)).keys() == kept(original).keys()
    run(original)
    found, expected = kept(made(original)), kept(original)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    if kind != "resume":  # whose run has ended
        with pytest.raises(Interrupted):
            run(original, Interrupt(1, 2))
    copied = made(original)
    assert copied.model is None
    model = run(copied)
    twin = run(MAKERS[kind](tmp_path / "twin"))
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if kind.startswith("log"):
        assert copied.loss.shape == (2, 20)


@pytest.mark.parametrize("how", COPIES)
def test_arrays_with_a_seed(how: str) -> None:
    data = SeededArrays(X, Y, batch_size=6, seed=4)
    data.on_epoch_begin()
    again = COPIES[how](data)
    for i in range(len(data)):
        for ours, theirs in zip(again[i], data[i], strict=True):
            np.testing.assert_array_equal(ours, theirs)
