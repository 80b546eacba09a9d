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
    """What a process of `kept_run` printed, and how many compilations it has loaded."""
    command = [sys.executable, "-m", "tests.support.kept_run", *arguments]
    logs = {"TF_CPP_VMODULE": "device_executable_persistor=1"}
    env = {**os.environ, **logs, "TF_CPP_MIN_LOG_LEVEL": "0", **environment}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    assert lines, found.stderr[-3000:]
    loaded = found.stderr.count("Loading cached entry for:")
    return {**json.loads(lines[-1]), "loaded": loaded}


def admitted(folder: Path) -> list[Path]:
    """The files for all, of all keys."""
    return sorted(folder.glob("*/*.pb.*"))


def entry(executable: bytes = b"code") -> bytes:
    """A file as TensorFlow writes it: key, program, code, each after its length."""
    parts = [(1, b"\x18\x01"), (2, b""), (3, executable)]
    return b"".join(bytes([n << 3 | 2, len(part)]) + part for n, part in parts)


def kept(folder: Path, limit: int = LIMIT) -> Any:
    """The store of a process, in this one."""
    return compilations._Kept(folder, limit)


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
    before = admitted(kept_before)
    assert len(list(kept_before.glob("*/process-*"))) == 1  # it was killed
    loaded = len(before)
    assert run(str(kept_before)) == {**plain, "loaded": loaded}
    assert admitted(kept_before) == before
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
    assert "an error, and not at the end of the data" in found["error"]
    assert "; File too large. It says so" in found["error"]


@pytest.mark.matrix
def test_a_folder_of_tensorflow_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    flags = f"--tf_xla_persistent_cache_directory={tmp_path}"
    found = run(str(tmp_path / "ours"), TF_XLA_FLAGS=flags)
    (said,) = found["said"]
    assert "already sets --tf_xla_persistent_cache_directory" in said
    assert not (tmp_path / "ours").exists()
    for path in tmp_path.glob("*.pb"):
        os.truncate(path, 1000)
    found = run("-", TF_XLA_FLAGS=flags)
    assert "says: Read less bytes than requested. It" in found["error"]


@pytest.mark.matrix
def test_two_processes_at_once(tmp_path: Path, plain: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "tests.support.kept_run", str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        printed = json.loads(process.communicate()[0].splitlines()[-1])
        assert {**printed, "loaded": 0} == plain
    names = {path.name.rpartition(".")[0] for path in admitted(tmp_path)}
    assert names
    assert run(str(tmp_path)) == {**plain, "loaded": len(names)}


@pytest.mark.matrix
def test_too_late_says_so(tmp_path: Path, plain: dict[str, Any]) -> None:
    found = run(str(tmp_path), "late")
    (said,) = found.pop("said")
    assert "TensorFlow has looked for devices already" in said
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
    (store,) = tmp_path.iterdir()
    assert [path.name for path in store.iterdir()] == [
        f"a.pb.{hashlib.sha256(entry()).hexdigest()}"
    ]
    assert store.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", range(len(entry())))
def test_a_file_that_ends_early_is_not_admitted(size: int, tmp_path: Path) -> None:
    assert xla.is_whole_compilation(entry())
    found = kept(tmp_path)
    (found.folder / "a.pb").write_bytes(entry()[:size])
    (found.folder / "b.pb123.tmp").write_bytes(entry())  # TensorFlow writes it now
    found.close()
    assert not admitted(tmp_path)


def test_what_killed_processes_have_left_goes(tmp_path: Path) -> None:
    store, other = tmp_path / compilations._key(), tmp_path / "older version"
    (other / "process-dead").mkdir(parents=True)
    (other / "process-dead" / "lock").touch()
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
    mine = alive.folder.resolve().parent.name
    assert names == {".making-new", ".new-new", mine}
    assert not list(other.iterdir())
    alive.close()


def test_the_oldest_files_go(tmp_path: Path) -> None:
    (tmp_path / "older version").mkdir()
    old = tmp_path / "older version" / "old.pb.0"
    old.write_bytes(entry(b"c" * 100))
    os.utime(old, (1, 1))
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
    with pytest.warns(UserWarning, match=r"nothing: TensorFlow 9\.9\.0 was"):
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
    monkeypatch.setattr(compilations, "_obstacle", lambda root: None)
    with pytest.warns(UserWarning, match=r"file' cannot be written"):
        keep_compilations(tmp_path / "file")


def test_flags_and_threads_that_are_set_later_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = kept(tmp_path)
    (found.folder / "a.pb").write_bytes(entry())
    found.admit()
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    (found.folder / "b.pb").write_bytes(entry())
    found.admit()  # of which flags it is, nobody knows
    assert [path.name[:4] for path in admitted(tmp_path)] == ["a.pb"]
    found.prepare()
    assert not list(found.folder.iterdir())
    (found.folder / "c.pb").write_bytes(entry())
    found.close()
    stores = {path.name[:4]: path.parent.name for path in admitted(tmp_path)}
    assert stores["a.pb"] != stores["c.pb"] == compilations._key()


def test_a_full_disc_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = kept(tmp_path)
    before = found.folder.resolve()
    found.prepare()
    assert found.folder.resolve() == before
    monkeypatch.setattr(
        compilations, "_has_room", lambda place: "process-" not in str(place.resolve())
    )
    found.prepare()
    moved = found.folder.resolve()
    assert moved != before and tmp_path not in moved.parents
    (found.folder / "a.pb").write_bytes(entry())
    found.close()
    assert len(admitted(tmp_path)) == 1 and not moved.exists()
    assert not found.folder.exists()


def test_no_process_that_is_started_writes_there(tmp_path: Path) -> None:
    code = (
        "import os, keras, keras_sgd_plus as k; before = dict(os.environ); "
        f"k.keep_compilations({str(tmp_path)!r}); "
        "print({n for n in os.environ if os.environ[n] != before.get(n)})"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip().splitlines()[-1] in ("set()", "{'XLA_FLAGS'}")


def test_flags_in_a_file_and_folders_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "/etc/flags")
    with pytest.warns(UserWarning, match="XLA_FLAGS names a file, to which no flag"):
        keep_compilations(tmp_path)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(xla, "has_started", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    with pytest.warns(UserWarning, match="belongs to another user, whose code"):
        keep_compilations(tmp_path)


def test_a_program_that_is_damaged_is_not_admitted() -> None:
    program = b"\x12\x02\xff\xff"  # HLO that is none
    data = b"\x0a\x02\x18\x01" + program + b"\x1a\x04code"
    assert not xla.is_whole_compilation(data)
    long = entry()[:6] + b"\x1a\xac\x02" + b"c" * 300  # 300 in two bytes
    assert xla.is_whole_compilation(long)
    assert not xla.is_whole_compilation(long[:-1])


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
