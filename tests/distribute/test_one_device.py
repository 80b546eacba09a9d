"""Strategies of one device train as no strategy does."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)
from tests.support.versions import KERAS

N = 28
X, Y = dense_data(N)


@contextmanager
def _distribution(distribution: Any) -> Any:
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def _data_parallel() -> AbstractContextManager[Any]:
    devices = keras.distribution.list_devices("cpu")[:1]
    return _distribution(keras.distribution.DataParallel(devices=devices))


def _model_parallel() -> AbstractContextManager[Any]:
    devices = keras.distribution.list_devices("cpu")[:1]
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    return _distribution(keras.distribution.ModelParallel(layout_map=layout))


def _one_device() -> AbstractContextManager[Any]:
    return tf.distribute.OneDeviceStrategy("/cpu:0").scope()


on_tensorflow = pytest.mark.skipif(
    KERAS < (3, 15),
    reason="keras.distribution works with TensorFlow since Keras 3.15",
)
DEVICES = [
    pytest.param(_one_device, id="one_device"),
    pytest.param(
        _data_parallel, id="data_parallel", marks=[on_tensorflow, pytest.mark.matrix]
    ),
    pytest.param(
        _model_parallel, id="model_parallel", marks=[on_tensorflow, pytest.mark.matrix]
    ),
]


@pytest.mark.parametrize("scope", DEVICES)
def test_on_one_device(scope: Any, engagements: list[str]) -> None:
    with scope():
        pair = train_pair(dense_model, X, Y, fit={"epochs": 2})
        assert_same(pair)
        assert_engaged(pair, engagements, 2 * N)
