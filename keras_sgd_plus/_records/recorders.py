"""Which optimizers are recorded, and who gets the records."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._records.recorder import BatchRecord, Recorder
from keras_sgd_plus._records.tables import Wanted

Receive = Callable[[BatchRecord], None]

# Weak, and not attributes of the optimizer, which Keras's saver would walk.
_recorders: weakref.WeakKeyDictionary[Any, dict[Wanted, Recorder]] = (
    weakref.WeakKeyDictionary()
)
_running: weakref.WeakKeyDictionary[Any, _Running] = weakref.WeakKeyDictionary()


class _Running:
    # A log that records an optimizer.
    def __init__(self, recorder: Recorder, receive: Receive) -> None:
        self.recorder, self.receive = recorder, receive
        self.watchers = 0
        self.calls = 0  # whose records have not been taken


def start(optimizer: Optimizer, wanted: Wanted, receive: Receive) -> Recorder:
    """Records an optimizer from its next batch on.

    Args:
        optimizer: an SGDPlus.
        wanted: the quantities.
        receive: gets the record of each batch.

    Raises:
        RuntimeError: it is recorded already.
    """
    if optimizer in _running:
        raise RuntimeError(
            "Only one ExampleLog may record an optimizer at a time. Received: a second "
            f"one for {optimizer.name!r}. Call stop() on the first, or give fit one "
            "log with all that is to be recorded."
        )
    known = _recorders.setdefault(optimizer, {})
    if wanted not in known:
        known[wanted] = Recorder(wanted)
    known[wanted].clear()
    _running[optimizer] = _Running(known[wanted], receive)
    return known[wanted]


def stop(optimizer: Optimizer) -> None:
    """Ends the recording of an optimizer, if there is any."""
    _running.pop(optimizer, None)


def hand_on(optimizer: Optimizer) -> None:
    """Hands records that wait on to their log."""
    running = _running.get(optimizer)
    if running is None:
        return
    running.calls = 0
    for record in running.recorder.taken():
        running.receive(record)


def settings(optimizer: Optimizer) -> Wanted | None:
    """The quantities that a compiled step has to record; it is traced for them."""
    running = _running.get(optimizer)
    return None if running is None else running.recorder.wanted


def of(optimizer: Optimizer) -> Recorder | None:
    """The recorder for a step that is traced now, if someone takes its records."""
    running = _running.get(optimizer)
    if running is None or not running.watchers:
        return None
    return running.recorder


@contextlib.contextmanager
def watched(optimizer: Optimizer) -> Iterator[None]:
    """A call that walks batches: their records are handed on, soon or at `hand_on`.

    If an error ends it, those that wait are forgotten.
    """
    running = _running.get(optimizer)
    if running is None:
        yield
        return
    running.watchers += 1
    try:
        yield
    except BaseException:
        running.recorder.clear()
        raise
    finally:
        running.watchers -= 1
    if not running.watchers:
        running.calls += 1
        if running.calls >= running.recorder.calls_per_read:
            hand_on(optimizer)
