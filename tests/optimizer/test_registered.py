"""Keras finds the class of a saved optimizer; `fit` names a batch size that is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.twins import linear_model

X, Y = np.ones((6, 5), "float32"), np.ones((6, 2), "float32")


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    registry = keras.saving.get_custom_objects()
    before = dict(registry)
    yield
    registry.update(before)


@pytest.mark.parametrize("clears", ["before", "between", "between_two"])
def test_a_registry_that_was_cleared(clears: str, tmp_path: Path) -> None:
    registry = keras.saving.get_custom_objects()
    if clears == "before":
        registry.clear()
    model = linear_model()
    model.compile(SGDPlus(0.01, momentum=0.9), "mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    for _ in range(2 if clears == "between_two" else 1):
        registry.clear()
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is SGDPlus
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_batch_size_that_is_no_int() -> None:
    model = linear_model()
    model.compile(SGDPlus(), "mse")
    fix = r"Received: batch_size=1000000.0. Write fit\(batch_size=1000000\)."
    with pytest.raises(TypeError, match=fix):
        model.fit(X, Y, batch_size=1e6)
    model.fit(X, Y, batch_size=int(1e6), verbose=0)
    assert int(model.optimizer.iterations) == 6


@pytest.mark.parametrize("size", [float("inf"), float("nan"), 0.5])
def test_a_batch_size_that_is_no_number_of_examples(size: float) -> None:
    model = linear_model()
    model.compile(SGDPlus(), "mse")
    with pytest.raises(TypeError, match=r"Write fit\(batch_size=1000\)."):
        model.fit(X, Y, batch_size=size)
