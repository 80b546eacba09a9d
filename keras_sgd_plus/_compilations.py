"""keep_compilations: what XLA compiled is loaded by the next process.

TensorFlow can write what XLA compiled to a folder, and read it there. It does not check
these files: one that was cut short looks like the end of the data, and where a file
cannot be written, the step fails that needed it. So each process gets a private folder,
with links to files whose SHA-256 was compared:

    <folder>/<key>/<name>.<SHA-256>           for all: the name tells the content
    <folder>/<key>/process-<random>/files/    of one process: links to those; new files

A new file is admitted when all its parts are complete, and gets its final name at once
(`os.rename`). The key is a digest of what TensorFlow does not compare by itself:
versions, flags, processor, threads. It compares the program itself (the whole HLO), so
no model gets the code of another.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import xla

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

_MAX_BYTES = 500_000_000
_ROOM = 64_000_000  # free bytes of a place to which a process moves
_ABANDONED = 3600  # seconds after which nobody works on a file
_SUFFIX = ".pb"  # of TensorFlow's files; it renames those that are complete


def keep_compilations(
    folder: str | os.PathLike[str] | None = None, max_bytes: int = _MAX_BYTES
) -> None:
    """Keeps what XLA compiles in a folder, from which later processes load it.

    The first batch of the same program starts sooner then, with the same bits: a script
    that is run again, a notebook that was restarted. All functions of the process that
    XLA compiles for a CPU are kept, those of other libraries too.

    Call it once, after the imports and before TensorFlow lists devices or computes
    anything: TensorFlow reads the setting when it first looks for devices. What cannot
    be kept is compiled as ever, and a warning says why. Processes that this one starts
    keep nothing, unless they call it, too.

    Only you should be able to write the folder: what is in it is run as code. Files
    that were damaged are removed. Compilations are told apart by the program, the
    versions of TensorFlow, Keras and this package, `XLA_FLAGS`, `TF_XLA_FLAGS`, the
    processor and the number of threads.

    Args:
        folder: Path, made where it is missing; None: `keras_sgd_plus` in
            `$XDG_CACHE_HOME`, or in `~/.cache`. Defaults to `None`.
        max_bytes: Int. Where all files together take more, the oldest go. Defaults to
            `500_000_000`.

    Raises:
        TypeError: `folder` that is no path; `max_bytes` that is no int.
        ValueError: `max_bytes` below 1.
        RuntimeError: a second call with another folder.

    Example:

    ```python
    import keras
    from keras_sgd_plus import SGDPlus, keep_compilations

    keep_compilations()
    ```
    """
    global _kept
    root = _checked(folder, max_bytes)
    if _kept is not None:
        if root != _kept.root:
            raise RuntimeError(
                "keep_compilations must name one folder per process. Received: "
                f"{str(root)!r} after {str(_kept.root)!r}. Restart the process to use "
                "another one."
            )
        return
    reason = _obstacle(root)
    if reason is None:
        xla.raise_small_loop_threshold()  # a flag is a part of the key
        try:
            _kept = _Kept(root, max_bytes)
        except OSError as error:
            reason = f"{str(root)!r} cannot be written ({error.strerror})"
        else:
            xla.keep_compilations_in(_kept.folder)
            atexit.register(_kept.close)
    if reason is not None:
        warnings.warn(
            f"keep_compilations did nothing: {reason}. Training works as without it.",
            stacklevel=2,
        )


def _checked(folder: Any, max_bytes: Any) -> Path:
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.path.join(cache, "keras_sgd_plus")
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            "`folder` must be a path, or None for the usual place. Received: "
            f"folder={folder!r}. Use a str or a pathlib.Path."
        )
    text = (
        f"`max_bytes` must be an int >= 1. Received: max_bytes={max_bytes!r}. Use a "
        "number of bytes, such as 500_000_000."
    )
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(text)
    if max_bytes < 1:
        raise ValueError(text)
    return Path(os.path.abspath(os.path.expanduser(folder)))


def _obstacle(root: Path) -> str | None:
    # Why nothing can be kept, as a part of a sentence.
    if fcntl is None:
        return "it works on Linux and macOS only"
    if not xla.was_tested_for_keeping():
        return f"TensorFlow {tf.__version__} was not tested for it"
    if (name := xla.flags_in_a_file()) is not None:
        return f"{name} names a file, to which no flag can be added"
    if xla.is_told_where_to_keep():
        return (
            "TF_XLA_FLAGS already sets --tf_xla_persistent_cache_directory. Remove "
            "that flag to use keep_compilations"
        )
    if xla.has_started():
        return (
            "TensorFlow has looked for devices already, or computed something. Call "
            "keep_compilations right after the imports"
        )
    if root.exists() and root.stat().st_uid != os.geteuid():
        return f"{str(root)!r} belongs to another user, whose code it may hold"
    return None


def _key() -> str:
    ours = sys.modules["keras_sgd_plus"].__version__  # which imports this module
    threads = [*map(os.environ.get, ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"))]
    parts = [
        *(tf.__version__, tf.version.GIT_VERSION, keras.__version__, ours),
        *map(os.environ.get, ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")),
        *(_processor(), os.cpu_count(), _cores(), *threads, xla.num_threads()),
    ]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return f"tensorflow-{tf.__version__}-{digest[:16]}"


def _processor() -> str:
    # Its name and the instructions that it has.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS
        return repr(platform.uname())
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    found = dict.fromkeys(line for line in lines if line.startswith(told))
    return "\n".join([platform.machine(), *found])


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return None


class _Kept:
    """The kept compilations of this process.

    Attributes:
        root: the folder that the user named.
        folder: that TensorFlow is told; a link to the one that it uses.

    Args:
        root: the folder that the user named.
        max_bytes: that all files may take.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self._max_bytes = root, max_bytes
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner, self._turn = os.getpid(), threading.Lock()
        self._known: set[str] = set()
        self._locks: list[int] = []  # held until the process ends, however it ends
        self._remove_dead()
        self._links = Path(tempfile.mkdtemp(prefix="keras_sgd_plus-"))
        self._private = [self._links]
        self.folder = self._links / "now"
        self._enter(_key())

    def _enter(self, key: str) -> None:
        # Gives TensorFlow a private folder below that of a key.
        self._key, self._store = key, self.root / key
        self._store.mkdir(mode=0o700, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=self._store))
        lock = os.open(making / "lock", os.O_CREAT | os.O_RDWR)
        self._locks.append(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        (making / "files").mkdir()
        self._known.clear()
        self._link_admitted(making / "files")
        private = making.with_name(f"process-{making.name.split('-', 1)[1]}")
        making.rename(private)
        self._private.append(private)
        self._point_to(private / "files")

    def _point_to(self, files: Path) -> None:
        new = self._links / "next"
        new.symlink_to(files)
        os.replace(new, self.folder)

    def _remove_dead(self) -> None:
        # What processes have left that were killed.
        for left in self.root.glob("*/.*-*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    _remove(left)
        for folder in self.root.glob("*/process-*"):
            with contextlib.suppress(OSError):
                lock = os.open(folder / "lock", os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder)
                finally:
                    os.close(lock)

    def _link_admitted(self, files: Path) -> None:
        for path in self._store.glob(f"*{_SUFFIX}.*"):
            name, _, digest = path.name.rpartition(".")
            with contextlib.suppress(OSError):  # another process may remove it now
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != digest:
                    path.unlink()
                elif name not in self._known:
                    _link(path, data, files / name)
                    self._known.add(name)

    def prepare(self) -> None:
        """Looks, before something is compiled, whether it can be kept, and for what.

        Flags and threads may have been set since. And on a full disc, or where the
        folder cannot be written any more, new files go elsewhere.
        """
        if os.getpid() != self._owner:  # a fork
            return
        with self._turn, contextlib.suppress(OSError):
            if (key := _key()) != self._key:
                self._enter(key)
        if _has_room(self.folder):
            return
        for place in (tempfile.gettempdir(), "/dev/shm"):
            with self._turn, contextlib.suppress(OSError):
                if _has_room(Path(place)):
                    files = tempfile.mkdtemp(prefix="keras_sgd_plus-", dir=place)
                    self._private.append(Path(files))
                    self._point_to(Path(files))
                    return

    def admit(self) -> None:
        """Takes new files over for later processes, and removes the oldest ones."""
        if os.getpid() != self._owner or _key() != self._key:
            return
        with self._turn:
            found = self.folder.glob(f"*{_SUFFIX}")
            new = [path for path in found if path.name not in self._known]
            for path in new:
                self._known.add(path.name)
                with contextlib.suppress(OSError):  # a full disc: it is not kept
                    data = path.read_bytes()
                    if xla.is_whole_compilation(data):
                        digest = hashlib.sha256(data).hexdigest()
                        _write(self._store / f"{path.name}.{digest}", data)
            if new:
                self._keep_to_limit()

    def _keep_to_limit(self) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in self.root.glob(f"*/*{_SUFFIX}.*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size

    def close(self) -> None:
        """Admits what is new, and removes the private folders."""
        if os.getpid() == self._owner:
            self.admit()
            for folder in self._private:
                _remove(folder)


_kept: _Kept | None = None


def prepare() -> None:
    """Makes sure that what is compiled next can be kept, if compilations are kept."""
    if _kept is not None:
        _kept.prepare()


def admit() -> None:
    """Takes over what this process has compiled, if compilations are kept."""
    if _kept is not None:
        _kept.admit()


def check_end(error: tf.errors.OutOfRangeError) -> None:
    """Raises RuntimeError where an error is none of the data, which Keras takes it for.

    TensorFlow says OUT_OF_RANGE of a kept compilation that was cut short, and of a disc
    that takes no more.
    """
    if not xla.is_end_of_data(error):
        raise RuntimeError(
            "Training stopped on an error, and not at the end of the data. TensorFlow "
            f"says: {xla.reason_of(error)}. It says so where it cannot read or write "
            "compiled code. Free disc space, and remove the folder of "
            "keep_compilations, or the one that TF_XLA_FLAGS names."
        ) from error


def _has_room(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
        return shutil.disk_usage(folder).free >= _ROOM
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(path: Path, data: bytes, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a file system without hard links
        _write(new, data)


def _write(path: Path, data: bytes) -> None:
    # Never seen in part, whenever the process or the machine stops.
    number, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
