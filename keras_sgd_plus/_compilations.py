"""keep_compilations: what XLA compiled is loaded by the next process.

TensorFlow can write what XLA compiled to a folder, and read it there. It trusts that
folder: a file that was cut short ends training as if the data had ended, and on a full
disc the batch fails that was compiled. So each process gets a private folder, with
links to files that were looked at:

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
_Result = TypeVar("_Result")


def keep_compilations(
    folder: str | os.PathLike[str] | None = None, max_bytes: int = _MAX_BYTES
) -> None:
    """Keeps what XLA compiles in a folder, from which later processes load it.

    The first batch of the same program starts sooner then, with the same bits: a script
    that is run again, a notebook that was restarted. All functions of the process that
    XLA compiles for a CPU are kept, those of other libraries too.

    Call it once, after the imports and before TensorFlow computes anything: TensorFlow
    reads the setting when it starts. What cannot be kept is compiled as ever, and a
    warning says why.

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
    reason = _obstacle()
    if reason is None:
        xla.raise_small_loop_threshold()  # a flag is a part of the key
        try:
            _kept = _Kept(root, _key(), max_bytes)
        except OSError as error:
            reason = f"{str(root)!r} cannot be written ({error.strerror})"
        else:
            xla.keep_compilations_in(_kept.folder)
            atexit.register(_kept.close)
    if reason is not None:
        warnings.warn(
            f"Compilations are not kept: {reason}. Training works as without "
            "keep_compilations.",
            stacklevel=2,
        )


def _checked(folder: Any, max_bytes: Any) -> Path:
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "keras_sgd_plus"
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
    return Path(os.path.abspath(os.fspath(folder)))


def _obstacle() -> str | None:
    # Why nothing can be kept, as a part of a sentence.
    if fcntl is None:
        return "this works on Linux and macOS only"
    if not xla.was_tested_for_keeping():
        return f"TensorFlow {tf.__version__} was not tested for it"
    if xla.is_told_where_to_keep():
        return "TF_XLA_FLAGS names a folder already"
    if xla.has_started():
        return (
            "TensorFlow has computed something already. Call keep_compilations right "
            "after the imports"
        )
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
        key: what this process compiles for.
        max_bytes: that all files may take.
    """

    def __init__(self, root: Path, key: str, max_bytes: int) -> None:
        self.root, self._max_bytes = root, max_bytes
        self._store = root / key
        self._store.mkdir(parents=True, exist_ok=True)
        self._remove_dead()
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=self._store))
        # The lock is held until the process ends, however it ends.
        self._lock = os.open(making / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (making / "files").mkdir()
        self._known: set[str] = set()
        self._link_admitted(making / "files")
        self._private = making.with_name(f"process-{making.name.split('-', 1)[1]}")
        making.rename(self._private)
        self.folder = self._private / "now"
        self.folder.symlink_to(self._private / "files")
        self._moved: Path | None = None
        self._owner = os.getpid()
        self._turn = threading.Lock()

    def _remove_dead(self) -> None:
        # What processes have left that were killed.
        for left in self._store.glob(".*-*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    _remove(left)
        for folder in self._store.glob("process-*"):
            with contextlib.suppress(OSError):
                lock = os.open(folder / "lock", os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)

    def _link_admitted(self, files: Path) -> None:
        for path in self._store.glob(f"*{_SUFFIX}.*"):
            name, _, digest = path.name.rpartition(".")
            with contextlib.suppress(OSError):  # another process may remove it now
                if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                    path.unlink()
                elif name not in self._known:
                    _link(path, files / name)
                    self._known.add(name)

    def admit(self) -> None:
        """Takes new files over for later processes, and removes the oldest ones."""
        if os.getpid() != self._owner:  # a fork
            return
        with self._turn:
            new = [p for p in self.folder.glob(f"*{_SUFFIX}")]
            new = [path for path in new if path.name not in self._known]
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
            path.unlink(missing_ok=True)
            total -= size

    def has_failed(self, error: tf.errors.OpError) -> bool:
        """Whether an error is one of writing a compilation."""
        return str(self.folder) in str(error)

    def move(self) -> bool:
        """Sends TensorFlow to another disc; returns whether one with room was found."""
        if self._moved is not None:
            return False
        for place in (tempfile.gettempdir(), "/dev/shm"):
            with contextlib.suppress(OSError):
                if shutil.disk_usage(place).free >= _ROOM:
                    self._moved = Path(tempfile.mkdtemp(prefix="process-", dir=place))
                    self.folder.unlink()
                    self.folder.symlink_to(self._moved)
                    return True
        return False

    def close(self) -> None:
        """Admits what is new, and removes the private folder."""
        if os.getpid() == self._owner:
            self.admit()
            for folder in (self._private, self._moved):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)


_kept: _Kept | None = None


def with_room(call: Callable[[], _Result]) -> _Result:
    """The result of a call; it is made again elsewhere if a compilation has no room.

    Nothing of a function is run before it is compiled and kept, and one that could not
    be written is compiled anew.

    Args:
        call: of a function that XLA compiles.
    """
    try:
        return call()
    except tf.errors.OpError as error:
        if _kept is None or not _kept.has_failed(error) or not _kept.move():
            raise
    return call()


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
            "Training ended with OUT_OF_RANGE, and not because the data ended. "
            f"TensorFlow says: {xla.reason_of(error)}. If it names a file of a kept "
            "compilation, or bytes that are missing, make room on the disc, or train "
            "without keep_compilations and without a folder in TF_XLA_FLAGS."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, new)


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
