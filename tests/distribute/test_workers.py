"""Worker processes end with equal weights, also if one is lost and all restart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.internals import callback_checks
from tests.support.internals import strategy as current
from tests.support.paths import ROOT

EXAMPLE = [sys.executable, str(ROOT / "examples" / "multi_worker.py")]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
TIMEOUT = 150  # seconds; a run takes about 10
DIGEST = re.compile(r"epoch (\d+) worker (\d+) weights (\S+)")


def _run(*arguments: str) -> str:
    run = subprocess.run(
        [*EXAMPLE, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def _digests(output: str) -> dict[int, set[tuple[str, str]]]:
    """Epoch -> (worker, digest of its weights)."""
    found: dict[int, set[tuple[str, str]]] = {}
    for epoch, worker, digest in DIGEST.findall(output):
        found.setdefault(int(epoch), set()).add((worker, digest))
    return found


def _assert_equal_weights(output: str, num_workers: int, epochs: int) -> None:
    found = _digests(output)
    assert sorted(found) == list(range(1, epochs + 1))
    for pairs in found.values():
        assert len(pairs) == num_workers
        assert len({digest for _, digest in pairs}) == 1
    # Each epoch moved them.
    assert len({next(iter(pairs))[1] for pairs in found.values()}) == epochs


@pytest.fixture(scope="module")
def uninterrupted() -> str:
    return _run("--epochs", "5")


@pytest.mark.matrix
def test_two_workers(uninterrupted: str) -> None:
    _assert_equal_weights(uninterrupted, 2, 5)
    assert uninterrupted.count("test loss") == 2


@pytest.mark.matrix
def test_four_workers() -> None:
    _assert_equal_weights(_run("--workers", "4", "--epochs", "8"), 4, 8)


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(0, id="chief", marks=pytest.mark.slow),
        pytest.param(1, id="worker", marks=pytest.mark.matrix),
    ],
)
def test_a_killed_worker(killed: int, uninterrupted: str, tmp_path: Path) -> None:
    """The other one ends with an error; a restart ends with the same weights."""
    arguments = ["--epochs", "5", "--directory", str(tmp_path / "run")]
    run = subprocess.Popen(
        [*EXAMPLE, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout: Any = run.stdout
    pids = [int(pid) for pid in stdout.readline().split()[1:]]
    for line in stdout:
        if line.startswith("epoch 2 "):
            break
    os.kill(pids[killed], signal.SIGKILL)
    start = time.monotonic()
    _, errors = run.communicate(timeout=TIMEOUT)
    assert time.monotonic() - start < 60
    assert run.returncode == 1  # of the one that was left
    # Or TensorFlow's own error, if Keras was adding up metrics between two batches.
    assert re.search("a worker that is gone|ollective.*aborted", errors), errors[-3000:]
    restarted = _run(*arguments)
    found, expected = _digests(restarted), _digests(uninterrupted)
    assert found
    for epoch, pairs in found.items():
        assert pairs == expected[epoch]
    assert min(found) > 1  # it did not begin anew
    assert max(found) == 5


def test_workers_must_share_the_directory() -> None:
    callback_checks.same_saves([3, 3])
    with pytest.raises(ValueError, match=r"last saves there are \[3, 0\]"):
        callback_checks.same_saves([3, 0])


def test_only_a_lost_worker_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    error = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: x")
    with pytest.raises(tf.errors.UnavailableError):
        with current.lost_workers(strategy):
            raise error
    monkeypatch.setattr(current, "has_workers", lambda strategy: True)
    with pytest.raises(RuntimeError, match="a worker that is gone .Collective ops"):
        with current.lost_workers(strategy):
            raise error
    with pytest.raises(tf.errors.InternalError):
        with current.lost_workers(strategy):
            raise tf.errors.InternalError(None, None, "something else")
