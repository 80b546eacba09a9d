"""What Keras calls for each batch: its own train function, and two looks around it."""

from __future__ import annotations

from typing import Any

from keras_sgd_plus import _ledger


class TrainFunction:
    """Keras's train function, kept up with the settings of a live optimizer.

    Keras traces its function once and keeps it: a momentum that a callback assigns
    would be ignored. And an error inside a graph would not be the user's own.

    Args:
        model: whose train function it is.
        optimizer: the SGDPlus.
        function: as Keras made it.
    """

    def __init__(self, model: Any, optimizer: Any, function: Any) -> None:
        self._model, self._optimizer, self._function = model, optimizer, function
        self._settings = optimizer.loop_settings()

    def is_stale(self, optimizer: Any) -> bool:
        """Whether it was traced for other settings, or another optimizer."""
        known = self._optimizer, self._settings
        return known != (optimizer, optimizer.loop_settings())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_stale(self._optimizer):
            self._model.make_train_function(force=True)
            return self._model.train_function(*args, **kwargs)
        with _ledger.watched():
            logs = self._function(*args, **kwargs)
        _ledger.raise_fault(self._optimizer)
        return logs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)
