"""Files and pickles that version 0.1.0 wrote load, and training goes on from them."""

from __future__ import annotations

import pickle
import subprocess
import sys
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


def _objects() -> dict[str, Any]:
    return pickle.loads((FILES / "objects.pickle").read_bytes())


@_READS_THEM
@pytest.mark.parametrize("source", ["model.keras", "objects.pickle"])
def test_training_goes_on_as_version_0_1_0_went_on(source: str) -> None:
    if source == "model.keras":
        model: Any = keras.models.load_model(FILES / source)
    else:
        model = _objects()["model"]
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


@_READS_THEM
def test_pickled_objects_of_0_1_0() -> None:
    found = _objects()
    assert type(found["optimizer"]) is SGDPlus
    assert float(found["optimizer"].learning_rate) == pytest.approx(0.02)
    assert (found["optimizer"].momentum, found["optimizer"].seed) == (0.5, 3)
    assert type(found["data"]) is SeededArrays
    x, y = _data()
    again = SeededArrays(x, y, batch_size=8, seed=3)
    for a, b in zip(found["data"][0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert type(found["callback"]) is ExactResume
    (skipped,) = found["skipped"]
    assert (skipped.batch, skipped.positions, skipped.cause) == (0, (5,), "loss")


PICKLED = {
    "_optimizer": "SGDPlus",
    "_arrays": "SeededArrays",
    "_resume": "ExactResume",
    "_ledger": "Skipped",
}


@pytest.mark.matrix
def test_pickles_name_modules_that_python_finds() -> None:
    """In a process that has imported nothing, as `pickle.load` may be."""
    names = PICKLED.items()
    found = [f"ckeras_sgd_plus.{module}\n{name}\n." for module, name in names]
    code = (
        "import pickle, sys\n"
        f"for text in {found!r}:\n"
        "    before = [m for m in sys.modules if m.startswith('keras_sgd_plus')]\n"
        "    for module in before: del sys.modules[module]\n"
        "    print(pickle.loads(text.encode()).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == list(PICKLED.values()), done.stderr


def test_public_classes_name_the_package_as_their_module() -> None:
    for public in (SGDPlus, ExactResume, SeededArrays):
        assert public.__module__ == "keras_sgd_plus"
    saved = pickle.dumps(SeededArrays(*_data(), seed=1))
    assert b"keras_sgd_plus._" not in saved
