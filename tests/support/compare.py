"""How far two trainings are apart, in a measure that does not depend on scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Snapshot = dict[str, list[np.ndarray]]


def snapshot(model: Any) -> Snapshot:
    """Copies of all state of a model in training, by kind of variable."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    known = {id(inner._iterations), id(getattr(inner, "_learning_rate", None))}
    kinds = {
        "weights": model.trainable_variables,
        "statistics": [v for v in model.non_trainable_variables if not _is_seed(v)],
        "seeds": [v for v in model.non_trainable_variables if _is_seed(v)],
        "slots": [v for v in inner.variables if id(v) not in known],
        "counters": [inner._iterations],
    }
    if inner is not optimizer and optimizer.built:
        kinds["loss scale"] = [optimizer.step_counter, optimizer.dynamic_scale]
    return {kind: [np.array(v.numpy()) for v in vs] for kind, vs in kinds.items()}


def _is_seed(variable: Any) -> bool:
    return "seed_generator_state" in variable.path


@dataclass(frozen=True)
class Difference:
    """The largest difference in units of the largest change, and bit equality."""

    relative: float
    bit_equal: bool


def difference(before: Snapshot, ours: Snapshot, theirs: Snapshot) -> Difference:
    """max|ours - theirs| / max|theirs - before| per kind; the largest of the kinds.

    Per-tensor relative error is no measure: a tensor whose true gradient is zero (an
    attention key bias) is all rounding noise. Counters and seeds must be equal.

    Raises:
        AssertionError: counters, seeds or loss scale differ, or nothing changed.
    """
    worst, equal = 0.0, True
    for kind, reference in theirs.items():
        for a, b in zip(ours[kind], reference, strict=True):
            equal = equal and np.array_equal(a, b)
            if kind in ("seeds", "counters", "loss scale"):
                np.testing.assert_array_equal(a, b, err_msg=kind)
        if kind in ("weights", "statistics", "slots") and reference:
            start = before.get(kind) or []
            if len(start) != len(reference):  # slots made by the first update
                start = [np.zeros_like(b) for b in reference]
            gaps = [_gap(a, b) for a, b in zip(ours[kind], reference, strict=True)]
            moves = [_gap(a, b) for a, b in zip(start, reference, strict=True)]
            if not np.isfinite(moves).all():
                raise AssertionError(f"training diverged: {kind} are not finite")
            if max(moves) > 0:
                worst = max(worst, max(gaps) / max(moves))
            elif kind == "weights":
                raise AssertionError("training changed no weight")
            else:
                assert max(gaps) == 0, kind
    return Difference(worst, equal)


def rounding(before: Snapshot, after: Snapshot) -> float:
    """How far rounding the weights once in float32 puts two trainings apart.

    In units of the largest change, as `difference`: it counts where that is small.
    """
    start = before.get("weights") or [np.zeros_like(a) for a in after["weights"]]
    moves = [_gap(a, b) for a, b in zip(start, after["weights"], strict=True)]
    largest = [float(np.max(np.abs(a), initial=0.0)) for a in after["weights"]]
    return float(np.finfo("float32").eps) * max(largest) / max(moves)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a.astype("float64") - b.astype("float64")), initial=0.0))


NUM_UPDATES = 300  # of `python -m benchmarks equality`


def bound_of(dtype: str, num_updates: int = NUM_UPDATES) -> float:
    """The bound for a dtype policy: rounding that adds up like a random walk.

    It holds under mixed precision too, since XLA rounds to it at the same places.
    """
    return 1e-12 if dtype == "float64" else 1e-6 * num_updates**0.5
