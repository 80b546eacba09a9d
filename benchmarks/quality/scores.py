"""How good outputs are: accuracy, and whether probabilities are to be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.quality.problems import Problem

_LEAST = 1e-7  # probability, as Keras clips it
_BINS = 15
_MINUTES = 30  # of a unit of delay


def of(
    problem: Problem, outputs: np.ndarray, y: np.ndarray, part: str
) -> dict[str, Any]:
    """Scores of outputs (examples, classes or 1) by name; None if not finite.

    The score of a part is its accuracy, or the mean absolute error in minutes; on the
    test part of a classification "nll" and "ece" tell its calibration.
    """
    if problem.is_regression:
        return {part: _rounded(_MINUTES * float(np.abs(outputs - y).mean()), 4)}
    found = {part: _rounded(float((outputs.argmax(1) == y).mean()), 5)}
    if part == "test":
        found |= {
            "nll": _rounded(negative_log_likelihood(outputs, y), 4),
            "ece": _rounded(calibration_error(outputs, y), 4),
        }
    return found


def negative_log_likelihood(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats per example."""
    of_label = probabilities[np.arange(len(y)), y].astype("float64")
    return float(-np.log(np.clip(of_label, _LEAST, 1.0)).mean())


def calibration_error(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error: how far confidence is from accuracy.

    The examples are put into 15 bins of equal width by their largest probability; the
    error is the mean over examples of |accuracy - mean confidence| of their bin
    (Guo et al., 2017, arXiv 1706.04599).
    """
    if not np.isfinite(probabilities).all():
        return math.nan
    confidence = probabilities.max(1).astype("float64")
    is_right = probabilities.argmax(1) == y
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(y))


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
