"""An exported model predicts, and training goes on without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.tiers import matrix
from tests.support.twins import (
    BATCH_SIZE,
    dense_data,
    dense_model,
)

N = 28
X, Y = dense_data(N)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model in training with XLA, whose loop the export must not contain."""
    model = dense_model()
    model.compile(SGDPlus(0.01, 0.9), "mse")
    model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)
    return model


@pytest.mark.parametrize(
    "read",
    [tf.saved_model.load, *matrix(layers.TFSMLayer)],
    ids=["saved_model", "layer"],
)
def test_export(
    read: Callable[[str], Any], trained: Any, tmp_path: Path, engagements: list[str]
) -> None:
    """The SavedModel predicts as the model did, also after the model trains on."""
    model = trained
    before = int(model.optimizer.iterations)
    model.export(tmp_path / "exported", verbose=False)
    predicted = model.predict(X, verbose=0)
    exported = read(str(tmp_path / "exported"))
    loaded = getattr(exported, "serve", exported)
    np.testing.assert_allclose(loaded(X), predicted, rtol=1e-6, atol=1e-7)
    model.fit(X, Y, batch_size=BATCH_SIZE, verbose=0)
    assert int(model.optimizer.iterations) == before + N
    assert engagements == []  # and needs no new trace
    np.testing.assert_allclose(loaded(X), predicted, rtol=1e-6, atol=1e-7)
    assert np.abs(model.predict(X, verbose=0) - predicted).max() > 1e-3
