"""The forms are in Keras's backend, where its functions are as they have to be."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import installation, keras_optimizer, tracing


def _moments(x: Any, axes: Any, keepdims: bool = True, synchronized: bool = False):
    """Another default."""
    del x, axes, keepdims, synchronized


def _matmul(x1: Any, x2: Any, precision: Any = None) -> None:
    """Another parameter."""
    del x1, x2, precision


CHANGED = {"moments": _moments, "matmul": _matmul}


@pytest.fixture
def other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras's backend with two functions changed; the old warning is forgotten."""
    monkeypatch.setattr(installation, "_warned", set())
    for name, function in CHANGED.items():
        module = keras_optimizer.lowered_functions()[name]
        monkeypatch.setattr(module, name, function)


@pytest.mark.usefixtures("other_backend")
def test_missing_functions_warn_once() -> None:
    with pytest.warns(UserWarning, match="in which moments, matmul cannot") as caught:
        SGDPlus()
    text = str(caught[0].message)
    assert f"Received: Keras {keras.__version__}, " in text
    assert "Training is right, but slower" in text
    assert "pip install " in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGDPlus()
    for name in CHANGED:
        assert not installation.is_installed(name)
    assert installation.is_installed("conv")


@pytest.mark.usefixtures("other_backend")
def test_without_forms_nobody_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_SGD_PLUS_LOWERING", "0")
    SGDPlus()  # warnings are errors


def test_every_form_is_installed() -> None:
    SGDPlus()
    assert set(keras_optimizer.lowered_functions()) == set(installation.LOWERINGS)
    for name in installation.LOWERINGS:
        assert installation.is_installed(name)


def test_forms_are_off_beside_a_gpu_that_tensorflow_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPUs that the user has hidden are not visible to TensorFlow."""
    assert tracing.is_on()
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [f"{kind}:0"])
    assert not tracing.is_on()
