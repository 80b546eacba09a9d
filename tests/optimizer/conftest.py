"""Fixtures of the room."""

from __future__ import annotations

from typing import Any

import pytest

from keras_sgd_plus import SGDPlus
from tests.support.saved import (
    SGD,
    batch_size_of,
    compiled,
    fit,
)


@pytest.fixture(scope="module")
def half_trained() -> dict[type, Any]:
    models = {cls: compiled(cls) for cls in (SGD, SGDPlus)}
    for model in models.values():
        fit(model, 0, 10, batch_size_of(model))
    return models
