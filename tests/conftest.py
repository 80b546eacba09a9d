"""Seeds, threads and the counter of engagements, for every test."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator

import keras
import pytest
import tensorflow as tf

from keras_sgd_plus import _step

tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.threading.set_intra_op_parallelism_threads(2)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Hides all that exists from the garbage collector.

    For tests that run it often: with what other tests have left it takes seconds.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def engagements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models whose train step the loop took, one per trace.

    Training can run without the loop and look right. A test that compares with Keras
    asserts with this that it compared the loop.
    """
    engaged: list[str] = []
    run = _step._run

    def counted(optimizer, outer, model, data):
        engaged.append(model.name)
        return run(optimizer, outer, model, data)

    monkeypatch.setattr(_step, "_run", counted)
    return engaged
