"""The one channel from the loop over examples to Python.

What the loop sees of single groups must not cost those who do not ask for it, and XLA
can only write tensors and variables. So it goes its way in three steps:

1. The loop carries it: tables of bad groups (`guard`) and of records (`records`), and
   variables with sums over updates (`running_sums`).
2. When a batch ends, the graph writes the tables to a ledger (`bad_examples`) and a
   recorder (`records`), with the place of the batch.
3. Whoever calls a train step does so inside `watched`: afterwards records go to their
   log, and a bad group is raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._report import bad_examples, records, running_sums


def begin_epoch(optimizer: Optimizer) -> None:
    """Begins to count anew all that logs show, as metrics do."""
    bad_examples.reset_counts(optimizer)
    bad_examples.leave_place(optimizer)
    running_sums.reset_capped(optimizer)


@contextlib.contextmanager
def watched(
    optimizer: Optimizer, place: tuple[int, int, int] | None = None, fit: object = None
) -> Iterator[None]:
    """A call that walks batches: what it has to tell is read when it ends.

    Records are handed on, soon or at `records.hand_on`. If an error ends the call,
    those that wait are forgotten.

    Args:
        optimizer: the SGDPlus.
        place: the number of a `fit`, the epoch and the first batch, both from 0; None
            if the call is none of `fit`.
        fit: the `Run` of that `fit`.

    Raises:
        FloatingPointError: `nonfinite="raise"` has ended a batch.
    """
    recorder = records.running_recorder(optimizer)
    ledger = bad_examples.ledger_of(optimizer)
    listeners = [each for each in (recorder, ledger) if each is not None]
    for each in listeners:
        each.watchers += 1
    place = place if listeners else None
    if place is not None:
        bad_examples.enter_place(optimizer, place, fit)
    try:
        yield
        bad_examples.raise_if_ended(optimizer)
    except BaseException:
        if recorder is not None:
            recorder.clear()
        raise
    finally:
        for each in listeners:
            each.watchers -= 1
        if place is not None:
            bad_examples.leave_place(optimizer)
    if recorder is not None and not recorder.watchers:
        recorder.calls += 1
        if recorder.calls >= recorder.calls_per_read:
            records.hand_on(optimizer)
