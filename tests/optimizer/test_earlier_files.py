"""What earlier versions wrote loads, and training goes on from it."""

from __future__ import annotations

import pickle
import runpy
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus
from tests.support.paths import ROOT
from tests.support.versions import KERAS

FILES = ROOT / "tests" / "data" / "version_0_1_0"  # write.py there wrote them
_READS_THEM = pytest.mark.skipif(
    KERAS < (3, 15),
    reason="Keras 3.15 wrote the model; older Keras does not know its initializers",
)


def _data() -> tuple[Any, Any]:
    x = np.random.default_rng(7).normal(size=(24, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


@pytest.mark.matrix
@_READS_THEM
def test_training_goes_on_as_version_0_1_0_went_on() -> None:
    model: Any = keras.models.load_model(FILES / "model.keras")
    optimizer = model.optimizer
    assert type(optimizer) is SGDPlus
    assert (optimizer.seed, optimizer.nonfinite) == (11, "skip")
    x, y = _data()
    start = [v.numpy() for v in model.variables]
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert int(optimizer.iterations) == 48
    stored = np.load(FILES / "continued.npz")
    found = [*model.get_weights(), *(v.numpy() for v in optimizer.variables)]
    assert len(found) == len(stored.files)
    moved = max(
        np.abs(a - b.numpy()).max() for a, b in zip(start, model.variables, strict=True)
    )
    for name, value in zip(stored.files, found, strict=True):
        # Other machines round otherwise; the epoch moved weights by far more.
        np.testing.assert_allclose(value, stored[name], rtol=1e-5, atol=1e-5 * moved)


# Version 0.2.0. `write.py` in the folder wrote the files, and its functions are used.
FILES_0_2_0 = ROOT / "tests" / "data" / "version_0_2_0"


def _writer() -> dict[str, Any]:
    return runpy.run_path(str(FILES_0_2_0 / "write.py"))


def _is_continued(model: Any) -> None:
    writer = _writer()
    start = [v.numpy() for v in model.variables]
    model.fit(*writer["data"](), batch_size=8, shuffle=False, verbose=0)
    stored = np.load(FILES_0_2_0 / "continued.npz")
    state = [v.numpy() for v in model.optimizer.variables]
    found = [*model.get_weights(), *state]
    assert len(found) == len(stored.files)
    floats = [(a, v) for a, v in zip(start, model.variables, strict=True) if a.ndim]
    moved = max(float(np.abs(a - v.numpy()).max()) for a, v in floats)
    for name, value in zip(stored.files, found, strict=True):
        np.testing.assert_allclose(value, stored[name], rtol=1e-5, atol=1e-4 * moved)


@pytest.mark.matrix
@_READS_THEM
def test_a_model_of_0_2_0_trains_on() -> None:
    _is_continued(keras.models.load_model(FILES_0_2_0 / "model.keras"))


@_READS_THEM
def test_weights_of_0_2_0_are_those_of_its_model() -> None:
    model = _writer()["network"]()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(FILES_0_2_0 / "old.weights.h5")
    whole: Any = keras.models.load_model(FILES_0_2_0 / "model.keras")
    for one, other in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pickled_objects_of_0_2_0() -> None:
    found = pickle.loads((FILES_0_2_0 / "objects.pickle").read_bytes())
    assert (found["optimizer"].momentum, found["optimizer"].seed) == (0.5, 3)
    again = SeededArrays(*_writer()["data"](), batch_size=8, seed=3)
    for a, b in zip(found["data"][0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    (skipped,) = found["skipped"]
    assert (skipped.batch, skipped.positions, skipped.cause) == (0, (5,), "loss")


def test_a_run_of_0_2_0_is_taken_up(tmp_path: Path) -> None:
    shutil.copytree(FILES_0_2_0 / "run", tmp_path / "run")
    model, log = _writer()["run"](tmp_path / "run")
    assert int(model.optimizer.iterations) == 72
    stored = np.load(FILES_0_2_0 / "resumed.npz")
    for i, value in enumerate(model.get_weights()):
        np.testing.assert_allclose(value, stored[f"arr_{i}"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(log.visited, stored["visited"])
    np.testing.assert_allclose(log.loss, stored["loss"], rtol=1e-5)


def test_files_of_a_log_of_0_2_0() -> None:
    shapes = {p.stem: np.load(p).shape for p in (FILES_0_2_0 / "log").iterdir()}
    names = ("loss", "unweighted_loss", "gradient_norm", "visited")
    assert shapes == {"prediction_0": (2, 24, 1), **dict.fromkeys(names, (2, 24))}


def test_public_classes_name_the_package_as_their_module() -> None:
    for public in (SGDPlus, ExactResume, SeededArrays):
        assert public.__module__ == "keras_sgd_plus"
    saved = pickle.dumps(SeededArrays(*_data(), seed=1))
    assert b"keras_sgd_plus._" not in saved
