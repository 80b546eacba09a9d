"""Hand-written C, one thread, compiled here: the limit for the other arms."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import names
from benchmarks.arms.arm import Arm, Unsupported
from benchmarks.arms.workloads import Workload

_COMPILER = shlex.split(os.environ.get("CC") or "cc")
if shutil.which(_COMPILER[0]) is None:
    raise ImportError(f"no C compiler: {_COMPILER[0]!r} not found (set CC)")
_FLAGS = ["-O3", "-march=native", "-ffast-math", "-fPIC"]
_CNN_DENSE = (800, 10)  # after 5x5x32
_EXAMPLE_BY_EXAMPLE, _FUSED, _IN_BLOCKS = range(3)  # as in native.c


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled native.c, built once per process."""
    source = Path(__file__).with_name("native.c")
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "native.o", Path(directory) / "native.so"
        compiled, linked = map(str, built)
        # Linked without -ffast-math, with which GCC would make denormals zero in all
        # of the process, as soon as the library is loaded.
        for command in (
            [*_FLAGS, "-c", str(source), "-o", compiled],
            ["-shared", compiled, "-o", linked, "-lm"],
        ):
            subprocess.run([*_COMPILER, *command], check=True)
        library = ctypes.CDLL(linked)
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for name, result, arguments in (
        ("create", pointer, [pointer, integer, integer, integer, real, real]),
        ("destroy", None, [pointer]),
        ("exchange", None, [pointer, pointer, integer]),
        ("train", ctypes.c_double, [pointer] * 3 + [ctypes.c_long, integer]),
    ):
        function = getattr(library, name)
        # Undeclared, ctypes would cut the pointer that `create` returns to an int.
        function.restype, function.argtypes = result, arguments
    return library


class _Native:
    """A network in C, with its examples."""

    def __init__(
        self,
        workload: Workload,
        weights: list[np.ndarray],
        x: Any,
        y: Any,
        how: int = _FUSED,
    ) -> None:
        self._how = how
        cnn = workload.network == "cnn"
        sizes = np.asarray(_CNN_DENSE if cnn else workload.sizes, "int32")
        cross_entropy = workload.loss == "cross_entropy"
        # Kept: C reads these arrays in every pass.
        self._x = np.ascontiguousarray(x, "float32")
        self._y = np.ascontiguousarray(y, "int32" if cross_entropy else "float32")
        self._shapes = [np.shape(weight) for weight in weights]
        self._library = _library()
        self._net = self._library.create(
            sizes.ctypes.data,
            len(sizes) - 1,
            cnn,
            cross_entropy,
            workload.learning_rate,
            workload.momentum,
        )
        # The network is C's memory, which Python does not free.
        weakref.finalize(self, self._library.destroy, self._net)
        self._exchange([np.ascontiguousarray(w, "float32") for w in weights], True)
        self.loss = float("nan")  # mean over the last pass, each before its update

    def _exchange(self, weights: list[np.ndarray], put: bool) -> None:
        addresses = (ctypes.c_void_p * len(weights))(*(w.ctypes.data for w in weights))
        self._library.exchange(self._net, addresses, put)

    def train(self) -> None:
        """One pass over the examples."""
        x, y = self._x, self._y
        total = self._library.train(
            self._net, x.ctypes.data, y.ctypes.data, len(x), self._how
        )
        self.loss = total / max(len(x), 1)

    def weights(self) -> list[np.ndarray]:
        """Copies of the weights, in Keras's order and layout."""
        weights = [np.empty(shape, "float32") for shape in self._shapes]
        self._exchange(weights, False)
        return weights


def make(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    """The C arm of a workload."""
    if workload.network not in ("dense", "cnn"):
        raise Unsupported(f"not written in C: {workload.network}")
    if workload.network == "cnn":
        if workload.sizes != (16, 32, 10):
            raise Unsupported("the C convolutions have fixed sizes")
        if workload.momentum:
            raise Unsupported("the C convolutions have no momentum")
    return _Native(workload, weights, x, y)


def make_unfused(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    """The arm that fuses nothing across examples."""
    if workload.network != "dense":
        raise Unsupported("the C convolutions fuse nothing across examples")
    return _Native(workload, weights, x, y, _EXAMPLE_BY_EXAMPLE)


def make_in_blocks(
    workload: Workload, weights: list[np.ndarray], x: Any, y: Any
) -> Arm:
    """The arm that updates the first layer in blocks of 64 examples."""
    if workload.network != "dense":
        raise Unsupported("the C convolutions are not walked in blocks")
    return _Native(workload, weights, x, y, _IN_BLOCKS)


ARMS = {names.C: make, names.C_UNFUSED: make_unfused, names.C_BLOCKS: make_in_blocks}
