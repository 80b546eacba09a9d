"""Seeds, threads, the counter of engagements and a summary, for every test."""

from __future__ import annotations

import gc
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Iterator

import hypothesis.configuration
import keras
import pytest
import tensorflow as tf

from keras_sgd_plus import _step

# It keeps what it knows of Unicode and of this project in a folder of its own.
hypothesis.configuration.set_hypothesis_home_dir(
    os.path.join(tempfile.gettempdir(), "keras_sgd_plus_hypothesis")
)

tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.threading.set_intra_op_parallelism_threads(2)
# For tests of several replicas; all others stay on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration() for _ in range(4)],
)


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


_LINES: list[str] = []


@pytest.fixture
def summary() -> Callable[[str], None]:
    """Prints a line of figures at the end of the run, whether tests pass or not."""
    return _LINES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _LINES:
        terminalreporter.section("figures")
        for line in _LINES:
            terminalreporter.write_line(line)
