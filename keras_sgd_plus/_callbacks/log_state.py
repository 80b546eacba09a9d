"""How `ExactResume` saves the records of an `ExampleLog`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_sgd_plus._callbacks.example_log import ExampleLog
from keras_sgd_plus._callbacks.packing import packed, unpacked
from keras_sgd_plus._distribute import strategy


class LogState(tf.train.experimental.PythonState):
    """A part of a `tf.train.Checkpoint`.

    One worker writes the save, so it holds the records of all.

    Args:
        log: whose records are saved, and restored.
    """

    def __init__(self, log: ExampleLog) -> None:
        self._log = log
        self._saved = b""

    def collect(self) -> None:
        """Called by all workers, at the same place, before a save."""
        parts = strategy.gathered_bytes(_strategy(self._log), self._log.records.saved())
        named = {str(i): np.frombuffer(p, np.uint8) for i, p in enumerate(parts)}
        self._saved = packed(named)

    def serialize(self) -> Any:
        """Called by TensorFlow for each save."""
        return self._saved

    def deserialize(self, string_value: Any) -> None:
        """Called by TensorFlow with what `serialize` gave."""
        parts, current = unpacked(string_value), _strategy(self._log)
        num_workers = len(strategy.gathered(current, 0))
        if len(parts) != num_workers:
            raise ValueError(f"{len(parts)} workers there, {num_workers} here")
        self._log.records.restore(parts[str(strategy.worker(current))].tobytes())


def log_in(callbacks: Any) -> ExampleLog | None:
    """The `ExampleLog` in the `CallbackList` of a `fit`, if there is one."""
    found = [c for c in callbacks.callbacks if isinstance(c, ExampleLog)]
    return found[0] if found else None


def _strategy(log: ExampleLog) -> Any:
    model: Any = log.model
    return model.distribute_strategy
