"""Two million updates in one process add no memory and no traces."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable

import keras
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.paths import ROOT
from tests.support.twins import dense_data

NUM_UPDATES, BATCH_SIZE = 2_000_000, 1_000
WARM_UP = 60  # seconds


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_soak(engagements: list[str], summary: Callable[[str], None]) -> None:
    x, y = dense_data(20 * BATCH_SIZE)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(SGDPlus(1e-4, momentum=0.9, nonfinite="skip"), "mse", metrics=["mae"])
    start = time.monotonic()
    fits = after_warm_up = 0
    while int(model.optimizer.iterations) < NUM_UPDATES or not after_warm_up:
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=2, verbose=0)
        fits += 1
        if not after_warm_up and time.monotonic() - start > WARM_UP:
            after_warm_up = _resident()
            traces = len(engagements)
    for _ in range(fits // 2):  # as many again as half of what warmed up, at least
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=2, verbose=0)
    grown = _resident() / after_warm_up - 1
    updates = int(model.optimizer.iterations)
    summary(f"soak: {updates:,} updates, memory {grown:+.2%}, {traces} traces")
    assert updates >= NUM_UPDATES
    assert grown < 0.01
    assert len(engagements) == traces == 1


@pytest.mark.matrix
def test_the_slow_set_is_not_empty() -> None:
    command = [sys.executable, "-m", "pytest", "-m", "slow", "--collect-only", "-q"]
    files = [
        "tests/step/test_soak.py",
        "tests/callbacks/test_exact_resume.py",
        "tests/step/test_streams.py",
    ]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in files:
        assert name in done.stdout
