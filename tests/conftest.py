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

from tests.support.internals import notices, step

# Hypothesis keeps its cache there instead of in the repository.
hypothesis.configuration.set_hypothesis_home_dir(
    os.path.join(tempfile.gettempdir(), "keras_sgd_plus_hypothesis")
)

# A busy machine may compile for long; tests/trainer/test_first_call.py has the warning.
notices.SECONDS = 3600.0
tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.threading.set_intra_op_parallelism_threads(2)
# Tests of several replicas use all of them; all others stay on the first.
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


@pytest.fixture(scope="module", autouse=True)
def _few_objects() -> None:
    """Hides the objects of other modules from the garbage collector.

    Graphs and compiled functions stay for as long as the process. They are millions of
    objects, and a collection that visits them all takes seconds.
    """
    _hide_objects()


@pytest.fixture
def few_objects() -> None:
    """Hides the objects of earlier tests, for a test that collects often."""
    _hide_objects()


def _hide_objects() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def engagements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models whose train step the loop took, one per trace.

    Training can run without the loop and look right. So a test that compares with Keras
    asserts that the loop engaged.
    """
    engaged: list[str] = []
    run = step.train_step

    def counted(optimizer, outer, model, data):
        engaged.append(model.name)
        return run(optimizer, outer, model, data)

    monkeypatch.setattr(step, "train_step", counted)
    return engaged


@pytest.fixture
def summary(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line of figures at the end of the run, whether tests pass or not."""
    return lambda line: request.node.user_properties.append(("figure", line))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test has one tier: a row of the matrix that is slow is slow alone."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.own_markers = [m for m in item.own_markers if m.name != "matrix"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for found in terminalreporter.stats.values() for r in found]
    called = [r for r in reports if getattr(r, "when", "") == "call"]
    lines = [v for r in called for k, v in r.user_properties if k == "figure"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
