"""keep_compilations: the next process loads them, and nothing else ever changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_sgd_plus import keep_compilations
from tests.support.internals import compilations, xla
from tests.support.paths import ROOT

LIMIT = 1_000_000


def run(*arguments: str, **environment: str) -> dict[str, Any]:
    """What a process of `kept_run` printed."""
    command = [sys.executable, "-m", "tests.support.kept_run", *arguments]
    env = {**os.environ, **environment}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    assert lines, found.stderr[-3000:]
    return json.loads(lines[-1])


def admitted(folder: Path) -> list[Path]:
    """The files for all, of all keys."""
    return sorted(folder.glob("*/*.pb.*"))


def entry(executable: bytes = b"code") -> bytes:
    """A file as TensorFlow writes it: key, program, code, each after its length."""
    parts = [(1, b"\x18\x01"), (2, b""), (3, executable)]
    return b"".join(bytes([n << 3 | 2, len(part)]) + part for n, part in parts)


def kept(folder: Path, key: str = "key", limit: int = LIMIT) -> Any:
    """The store of a process, in this one."""
    return compilations._Kept(folder, key, limit)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """A process that keeps nothing."""
    found = run("-")
    assert found["updates"] == 40 and found["said"] == []
    return found


@pytest.fixture(scope="module")
def kept_before(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any]
) -> Path:
    """The folder of a process that trained alike, and was killed afterwards."""
    folder = tmp_path_factory.mktemp("with a space")
    assert run(str(folder), "killed") == plain
    assert admitted(folder)
    return folder


@pytest.mark.matrix
def test_the_next_process_loads_what_was_compiled(
    kept_before: Path, plain: dict[str, Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in admitted(kept_before)}
    assert len(list(kept_before.glob("*/process-*"))) == 1  # it was killed
    assert run(str(kept_before)) == plain
    after = {path: path.stat().st_mtime_ns for path in admitted(kept_before)}
    assert after == before  # what is not loaded is written anew
    assert not list(kept_before.glob("*/process-*"))


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["lost", "cut", "flipped"])
def test_a_damaged_file_is_compiled_anew(
    way: str, kept_before: Path, plain: dict[str, Any]
) -> None:
    before = {path.name: path.read_bytes() for path in admitted(kept_before)}
    for path in admitted(kept_before):
        data = bytearray(path.read_bytes())
        if way == "lost":
            path.unlink()
        elif way == "cut":
            path.write_bytes(data[:1000])
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    assert run(str(kept_before)) == plain
    after = {path.name: path.read_bytes() for path in admitted(kept_before)}
    names = [{name.rpartition(".")[0] for name in found} for found in (before, after)]
    assert names[0] == names[1]
    for name, data in after.items():
        assert hashlib.sha256(data).hexdigest() == name.rpartition(".")[2]


@pytest.mark.matrix
def test_where_the_folder_takes_nothing_it_goes_on_elsewhere(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    flags = "--tf_xla_max_cluster_size=100"  # of the user, which stay
    assert run(str(tmp_path), "unwritable", TF_XLA_FLAGS=flags) == plain
    assert admitted(tmp_path)  # from elsewhere


@pytest.mark.matrix
def test_a_full_disc_is_an_error_and_no_end_of_the_data(tmp_path: Path) -> None:
    """No disc takes the file, and TensorFlow says OUT_OF_RANGE."""
    found = run(str(tmp_path), "full")
    assert "and not because the data ended" in found["error"]
    assert "; File too large. If it names" in found["error"]


@pytest.mark.matrix
def test_a_folder_of_tensorflow_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    flags = f"--tf_xla_persistent_cache_directory={tmp_path}"
    found = run(str(tmp_path / "ours"), TF_XLA_FLAGS=flags)
    (said,) = found["said"]
    assert "TF_XLA_FLAGS names a folder already" in said
    assert not (tmp_path / "ours").exists()
    for path in tmp_path.glob("*.pb"):
        os.truncate(path, 1000)
    found = run("-", TF_XLA_FLAGS=flags)
    assert "says: Read less bytes than requested. If" in found["error"]


@pytest.mark.matrix
def test_two_processes_at_once(tmp_path: Path, plain: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "tests.support.kept_run", str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        printed = process.communicate()[0]
        assert json.loads(printed.splitlines()[-1]) == plain
    names = {path.name.rpartition(".")[0] for path in admitted(tmp_path)}
    assert names
    assert run(str(tmp_path)) == plain


@pytest.mark.matrix
def test_too_late_says_so(tmp_path: Path, plain: dict[str, Any]) -> None:
    found = run(str(tmp_path), "late")
    (said,) = found.pop("said")
    assert "TensorFlow has computed something already" in said
    assert {**found, "said": []} == plain
    assert not admitted(tmp_path)


def _damages() -> dict[str, Callable[[bytes], bytes]]:
    size = len(entry())
    flips = {
        f"byte {i} flipped": lambda data, i=i: (
            data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]
        )
        for i in range(size)
    }
    cuts = {f"cut at {i}": lambda data, i=i: data[:i] for i in range(size)}
    return {**flips, **cuts, "longer": lambda data: data + b"\0"}


@pytest.mark.parametrize("damage", _damages().values(), ids=list(_damages()))
def test_no_damaged_file_reaches_tensorflow(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    first = kept(tmp_path)
    (first.folder / "a.pb").write_bytes(entry())
    first.close()
    (path,) = admitted(tmp_path)
    path.write_bytes(damage(entry()))
    second = kept(tmp_path)
    assert not list(second.folder.glob("*.pb")) and not admitted(tmp_path)
    second.close()


def test_files_are_linked_under_the_names_of_tensorflow(tmp_path: Path) -> None:
    first = kept(tmp_path)
    (first.folder / "a.pb").write_bytes(entry())
    first.admit()  # as after the first batch
    second = kept(tmp_path)  # beside the first one
    assert (second.folder / "a.pb").read_bytes() == entry()
    second.close()
    assert (first.folder / "a.pb").read_bytes() == entry()
    first.close()
    assert [path.name for path in (tmp_path / "key").iterdir()] == [
        f"a.pb.{hashlib.sha256(entry()).hexdigest()}"
    ]


@pytest.mark.parametrize("size", range(len(entry())))
def test_a_file_that_ends_early_is_not_admitted(size: int, tmp_path: Path) -> None:
    assert xla.is_whole_compilation(entry())
    found = kept(tmp_path)
    (found.folder / "a.pb").write_bytes(entry()[:size])
    (found.folder / "b.pb123.tmp").write_bytes(entry())  # TensorFlow writes it now
    found.close()
    assert not admitted(tmp_path)


def test_what_killed_processes_have_left_goes(tmp_path: Path) -> None:
    store = tmp_path / "key"
    for name in (".making-old", ".making-new", "process-dead"):
        (store / name).mkdir(parents=True)
        (store / name / "lock").touch()
    for name in (".new-old", ".new-new"):
        (store / name).touch()
    for name in (".making-old", ".new-old"):
        os.utime(store / name, (1, 1))
    alive = kept(tmp_path)
    kept(tmp_path).close()
    names = {path.name for path in store.iterdir()}
    assert names == {".making-new", ".new-new", alive.folder.parent.name}
    alive.close()


def test_the_oldest_files_go(tmp_path: Path) -> None:
    first = kept(tmp_path, "other version")
    (first.folder / "old.pb").write_bytes(entry(b"c" * 100))
    first.close()
    os.utime(admitted(tmp_path)[0], (1, 1))
    second = kept(tmp_path, limit=250)
    for name in ("a.pb", "b.pb"):
        (second.folder / name).write_bytes(entry(b"c" * 100))
    second.close()
    assert [path.name[:4] for path in admitted(tmp_path)] == ["a.pb", "b.pb"]


def test_what_tensorflow_does_not_compare_is_in_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {compilations._key()}
    for name, value in {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "TF_XLA_FLAGS": "--tf_xla_max_cluster_size=3",
        "TF_NUM_INTRAOP_THREADS": "1",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            keys.add(compilations._key())
    for owner, name in (
        (tf, "__version__"),
        (compilations.keras, "__version__"),
        (sys.modules["keras_sgd_plus"], "__version__"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, "9.9")
            keys.add(compilations._key())
    for name in ("_processor", "_cores"):
        with monkeypatch.context() as patch:
            patch.setattr(compilations, name, lambda: "another")
            keys.add(compilations._key())
    assert len(keys) == 9


def test_nothing_is_kept_where_it_was_not_tested(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tf, "__version__", "9.9.0")
    before = os.environ.get("TF_XLA_FLAGS")
    with pytest.warns(UserWarning, match=r"not kept: TensorFlow 9\.9\.0 was"):
        keep_compilations(tmp_path)
    monkeypatch.setattr(compilations, "fcntl", None)
    with pytest.warns(UserWarning, match="on Linux and macOS only"):
        keep_compilations(tmp_path)
    assert os.environ.get("TF_XLA_FLAGS") == before
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(compilations, "_obstacle", lambda: None)
    with pytest.warns(
        UserWarning, match=r"file' cannot be written \(Not a directory\)"
    ):
        keep_compilations(tmp_path / "file")


def test_a_second_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = kept(tmp_path)
    monkeypatch.setattr(compilations, "_kept", found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_compilations(tmp_path)
    with pytest.raises(RuntimeError, match="must name one folder per process"):
        keep_compilations(tmp_path / "another")
    found.close()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"folder": 3}, TypeError, r"`folder` must be a path.*Received: folder=3"),
        ({"max_bytes": 1.5}, TypeError, r"`max_bytes` must be an int >= 1.*=1\.5"),
        ({"max_bytes": True}, TypeError, "`max_bytes` must be an int >= 1.*=True"),
        ({"max_bytes": 0}, ValueError, "`max_bytes` must be an int >= 1.*=0"),
    ],
)
def test_arguments(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        keep_compilations(**arguments)
