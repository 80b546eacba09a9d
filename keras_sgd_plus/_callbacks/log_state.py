"""How `ExactResume` saves the records of an `ExampleLog`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_sgd_plus._callbacks.example_log import ExampleLog


class LogState(tf.train.experimental.PythonState):
    """A part of a `tf.train.Checkpoint`.

    Args:
        log: whose records are saved, and restored.
    """

    def __init__(self, log: ExampleLog) -> None:
        self._records = log.records

    def serialize(self) -> Any:
        """Called by TensorFlow for each save."""
        return self._records.saved()

    def deserialize(self, string_value: Any) -> None:
        """Called by TensorFlow with what `serialize` gave."""
        self._records.restore(string_value)


def log_in(callbacks: Any) -> ExampleLog | None:
    """The `ExampleLog` in the `CallbackList` of a `fit`, if there is one."""
    found = [c for c in callbacks.callbacks if isinstance(c, ExampleLog)]
    return found[0] if found else None
