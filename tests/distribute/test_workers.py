"""Worker processes end with equal weights, also if one is lost and all restart."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.internals import exact_resume, keras_trainer, log_records, replicas
from tests.support.paths import ROOT
from tests.support.record_on_workers import SOURCES, arrays, trained
from tests.support.replicas import mirrored

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
    exact_resume.check_same_saves([3, 3])
    with pytest.raises(ValueError, match=r"last saves there are \[3, 0\]"):
        exact_resume.check_same_saves([3, 0])


def test_only_a_lost_worker_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    error = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: x")
    with pytest.raises(tf.errors.UnavailableError):
        with replicas.lost_workers(strategy):
            raise error
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)
    with pytest.raises(RuntimeError, match="a worker that is gone .Collective ops"):
        with replicas.lost_workers(strategy):
            raise error
    with pytest.raises(tf.errors.InternalError):
        with replicas.lost_workers(strategy):
            raise tf.errors.InternalError(None, None, "something else")


def test_rows_are_those_of_one_worker() -> None:
    visited = [np.array([0, -1, 1]), np.array([-1, 0, -1])]
    parts = [log_records.visited_part({"visited": v, "loss": v / 2}) for v in visited]
    found = log_records.merged([log_records.unpacked(part) for part in parts])
    assert found["visited"].tolist() == [0, 0, 1]
    assert found["loss"].tolist() == [0, 0, 0.5]
    with pytest.raises(ValueError, match="row 0, which two workers have visited"):
        log_records.merged(
            [log_records.unpacked(part) for part in (parts[0], parts[0])]
        )


def test_workers_whose_parts_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    monkeypatch.setattr(replicas, "has_workers", lambda strategy: True)

    def known(dataset: Any, num_replicas: int) -> None:
        monkeypatch.setattr(
            replicas, "num_replicas_per_worker", lambda strategy: num_replicas
        )
        run: Any = SimpleNamespace(number=0)
        run.data = keras_trainer.Data(dataset, False, 3, None, None)
        log_records.Rows(run, False, strategy)

    data = tf.data.Dataset.range(6).batch(2)
    with pytest.raises(ValueError, match="AutoShardPolicy.AUTO. Use one replica"):
        known(data, 1)
    options = tf.data.Options()
    policies = tf.data.experimental.AutoShardPolicy
    options.experimental_distribute.auto_shard_policy = policies.DATA
    known(data.with_options(options), 1)
    with pytest.raises(ValueError, match="2 replicas on each worker"):
        known(data.with_options(options), 2)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of two workers."""
    folder = tmp_path_factory.mktemp("records")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    workers = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = [sys.executable, "-m", "tests.support.record_on_workers", str(folder)]
        environment = {**ENVIRONMENT, "TF_CONFIG": config}
        workers.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
            )
        )
    for worker in workers:
        _, errors = worker.communicate(timeout=3 * TIMEOUT)
        assert worker.returncode == 0, errors[-3000:]
    return folder


def _records(folder: Path, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"{name}_{i}.npz")) for i in range(2)]


@pytest.mark.matrix
@pytest.mark.parametrize("source", SOURCES)
def test_records_of_two_workers_are_those_of_two_replicas(
    source: str, recorded: Path
) -> None:
    """Each keeps its part; gathered, all have all of them."""
    log = trained(mirrored(2), source)
    expected = arrays(log)
    own = _records(recorded, f"{source}_own")
    visits = [part["visited"] >= 0 for part in own]
    assert (visits[0] ^ visits[1]).all()
    for part in own:
        assert np.isnan(part["loss"][part["visited"] < 0]).all()
    for found in _records(recorded, source):
        np.testing.assert_array_equal(found["visited"], expected["visited"])
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, 1e-5, 1e-6, err_msg=name)
    for name in expected:
        for part, is_own in zip(own, visits, strict=True):
            np.testing.assert_array_equal(
                part[name][is_own], _records(recorded, source)[0][name][is_own]
            )


@pytest.mark.matrix
def test_records_of_workers_are_resumed(recorded: Path) -> None:
    """The save has those of all workers; each goes on with its own, in its files."""
    expected = _records(recorded, "arrays")[0]
    for found in _records(recorded, "resumed"):
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {p.name for p in (recorded / "files").iterdir()} == {"worker_0", "worker_1"}
