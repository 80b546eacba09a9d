"""Which ledgers an optimizer has, and how bad groups are reported and raised."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

from keras_sgd_plus._nonfinite import places
from keras_sgd_plus._nonfinite.find import Skips
from keras_sgd_plus._nonfinite.ledger import OUTSIDE, Ledger, Skipped
from keras_sgd_plus._private.types import Optimizer, Structure, Tensor

# Weak, and not an attribute of the optimizer, which Keras's saver would walk.
_ledgers: weakref.WeakKeyDictionary[Any, dict[tuple[int, bool], Ledger]] = (
    weakref.WeakKeyDictionary()
)
_CAUSES = "NaN or infinities in it, and labels out of range"
_SHOWN = 3  # groups that a warning names


def of(optimizer: Optimizer) -> Ledger | None:
    """The ledger for an SGDPlus as it is set now, or None under "propagate"."""
    if optimizer.nonfinite == "propagate":
        return None
    known = _ledgers.setdefault(optimizer, {})
    key = optimizer.examples_per_update, optimizer.nonfinite == "raise"
    if key not in known:
        known[key] = Ledger(*key)
    return known[key]


def every(optimizer: Optimizer, raises: bool | None = None) -> list[Ledger]:
    """The ledgers of an optimizer that exist: all, or those that raise, or do not."""
    known = _ledgers.get(optimizer, {}).values()
    return [ledger for ledger in known if raises in (None, ledger.raises)]


def skipped_examples(optimizer: Optimizer) -> list[Skipped]:
    """The groups that were skipped in the last `fit`, in order of visit."""
    return [e for ledger in every(optimizer, raises=False) for e in ledger.entries()]


def reset(optimizer: Optimizer) -> None:
    """Begins to count groups anew, as metrics do."""
    for ledger in every(optimizer):
        ledger.in_epoch.assign(0)


def begin(optimizer: Optimizer, fit: int) -> None:
    """Forgets the groups that an earlier `fit` has reported.

    Args:
        optimizer: an SGDPlus.
        fit: the number of the `fit` that begins, or `OUTSIDE`.
    """
    current = of(optimizer)
    for ledger in every(optimizer):
        if ledger.is_reported:
            ledger.clear()
        ledger.fit = fit if ledger is current else OUTSIDE


def close(
    ledger: Ledger | None,
    place: Tensor,
    iterations: Tensor,
    skips: Skips,
    logs: Structure,
    notes: Tensor,
) -> Any:
    """Adds a batch to a ledger, if there is one; gives the logs. See `Ledger.close`."""
    if ledger is None:
        return logs
    logs = ledger.close(place, iterations, skips, logs, notes)
    ledger.raise_in_graph(_not_finite)
    return logs


def report(optimizer: Optimizer) -> str | None:
    """The warning for the end of `fit`, or None where nothing was skipped."""
    texts = []
    for ledger in every(optimizer, raises=False):
        ledger.is_reported = True
        total = int(ledger.total.numpy())
        if total:
            entries = ledger.entries()
            place = places.described(optimizer, entries[:_SHOWN])
            texts.append(_left_out(total, entries, place))
    return " ".join(texts) or None


def raise_if_ended(optimizer: Optimizer) -> None:
    """Raises FloatingPointError where `nonfinite="raise"` has ended a batch early."""
    for ledger in every(optimizer, raises=True):
        if int(ledger.total.numpy()):
            entry = ledger.entries()[0]
            ledger.clear()
            place = places.described(optimizer, [entry])
            raise FloatingPointError(_not_finite(entry, place))


@contextlib.contextmanager
def watched(optimizer: Optimizer) -> Iterator[None]:
    """Tells the graph that the caller looks for bad groups after each batch."""
    ledger = of(optimizer)
    if ledger is None:
        yield
        return
    ledger.watchers += 1
    try:
        yield
    finally:
        ledger.watchers -= 1


def _not_finite(entry: Skipped, where: str = "") -> str:
    several = entry.replica is not None
    part = f"replica {entry.replica}'s part of " if several else ""
    place = f"{part}batch {entry.batch} of the epoch, which began after "
    kept = "before this batch" if several else "just before it"
    return (
        'Every loss and gradient must be finite under nonfinite="raise". Received: '
        f"{_cause(entry.cause)} at {_positions(entry.positions)} of {place}"
        f"{entry.iterations} updates (both from 0, as handed over). {where}Look there "
        f"for {_CAUSES}, or lower the learning_rate; "
        'nonfinite="skip" leaves such examples '
        f"out. The model holds the weights from {kept}, and can be trained on."
    )


def _left_out(total: int, entries: list[Skipped], where: str) -> str:
    shown = [f"{_positions(e.positions)} of batch {e.batch}" for e in entries[:_SHOWN]]
    more = ", and notes" if total > len(shown) else ""
    return (
        'Every loss and gradient should be finite. Received: nonfinite="skip" left out '
        f"{total} update(s): {_cause(entries[0].cause)} at {', '.join(shown)}{more}. "
        f"{where}Look there for {_CAUSES}; optimizer.skipped_examples() lists them."
    )


def _cause(cause: str) -> str:
    if cause == "loss":
        return "a loss that is not finite"
    return f"a gradient of {cause!r} that is not finite"


def _positions(positions: tuple[int, ...]) -> str:
    if len(positions) == 1:
        return f"position {positions[0]}"
    return f"positions {', '.join(str(i) for i in positions)}"
