"""Processes that hold a peer's arms, so that arms of several runtimes take turns.

TensorFlow, JAX and torch each run in a process of their own: XLA reads its flags once
per process, and JAX is measured with two settings of them.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

OUR_FLAGS = (
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=10000000"
)


@dataclass(frozen=True)
class Peer:
    """A module of `benchmarks.arms` in a process of its own."""

    name: str
    module: str
    environment: dict[str, str] = field(default_factory=dict)
    suffix: str = ""  # of the arms' ids, where a module is there twice


PEERS = (
    Peer("keras", "keras_arms"),
    Peer("jax", "jax_arms"),
    Peer("jax with our flags", "jax_arms", {"XLA_FLAGS": OUR_FLAGS}, ", our XLA flags"),
    Peer("torch", "torch_arms"),
    Peer("scikit-learn", "sklearn_arms"),
    Peer("C", "native_arms"),
)


class Worker:
    """A peer's process; `missing` says why there is none."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        # A fork would inherit the runtimes that the parent has started.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = dict(os.environ)  # a spawned process inherits ours: changed for it
        os.environ.pop("XLA_FLAGS", None)
        os.environ.update(peer.environment)
        try:
            self._process = context.Process(
                # Daemon: it must not outlive a benchmark that is stopped by hand.
                target=_serve,
                args=(theirs, peer.module),
                daemon=True,
            )
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        self.missing, self.arms = self._answer()

    def ask(self, request: str, *arguments: Any) -> Any:
        """The answer of the process to one request; RuntimeError if it failed."""
        self._pipe.send((request, arguments))
        error, answer = self._answer()
        if error is not None:
            raise RuntimeError(error)
        return answer

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return "the process ended", None

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():  # in a compilation, say
            self._process.terminate()


@contextlib.contextmanager
def started(peers: list[Peer]) -> Iterator[list[Worker]]:
    """A process per peer, until the block ends; prints which peers are missing."""
    workers = [Worker(peer) for peer in peers]
    for worker in workers:
        if worker.missing:
            print(f"{worker.peer.name} is {worker.missing}: its arms are missing.\n")
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def _serve(pipe: Connection, module: str) -> None:
    try:
        makers = importlib.import_module(f"benchmarks.arms.{module}").ARMS
    except ImportError as error:
        pipe.send((f"not installed: {error}", ()))
        return
    pipe.send((None, tuple(makers)))
    handler = _Handler(makers)
    while True:
        try:
            request, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((None, getattr(handler, request)(*arguments)))
        except Exception as error:  # an arm that fails is a row that says so
            # One line: it goes into a cell of a table.
            text = f"{type(error).__name__}: {error}".strip().splitlines()
            pipe.send((text[0][:200], None))


class _Handler:
    """The requests that a process answers."""

    def __init__(self, makers: dict[str, Any]) -> None:
        self.makers = makers
        self.arms: dict[str, Any] = {}
        self._data: Any = None  # of the workload at hand
        self._judge: Any = None  # a model that evaluates weights of all arms

    def make(self, name: str, workload: Any, weights: Any, count: int) -> float:
        """Makes an arm and runs one pass; seconds of both (compilation is in it)."""
        x, y = self._first(workload, count)
        start = time.perf_counter()
        arm = self.makers[name](workload, weights, x, y)
        arm.train()
        self.arms[name] = arm
        return time.perf_counter() - start

    def train(self, name: str) -> tuple[float, float]:
        """Seconds of one more pass, and of its call beside the pass."""
        arm = self.arms[name]
        if hasattr(arm, "timed"):
            return arm.timed()
        start = time.perf_counter()
        arm.train()
        return time.perf_counter() - start, 0.0

    def weights(self, name: str) -> list[np.ndarray]:
        """The arm's weights."""
        return self.arms[name].weights()

    def clear(self) -> None:
        """Forgets all arms and their data."""
        self.arms.clear()
        self._data = self._judge = None

    def initial_weights(self, workload: Any) -> list[np.ndarray]:
        """The weights that every arm starts from (only the process of Keras)."""
        from benchmarks.arms import keras_arms, keras_networks

        return keras_arms.weights_of(keras_networks.build(workload))

    def loss(self, workload: Any, weights: list[np.ndarray], count: int) -> float:
        """The loss on the first examples (only the process of Keras)."""
        from benchmarks.arms import keras_arms

        if self._judge is None:
            self._judge = keras_arms.compiled(workload, "sgd")
        keras_arms.start_from(self._judge, weights)
        x, y = self._first(workload, count)
        return float(self._judge.evaluate(x, y, batch_size=count, verbose=0))

    def _first(self, workload: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        # Examples that were made before are not made again for each arm.
        if self._data is None or len(self._data[0]) < count:
            self._data = workload.data(count)
        x, y = self._data
        return x[:count], y[:count]
