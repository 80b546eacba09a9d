"""Checks of the arguments of callbacks, and of the run that they are used in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._trainer import is_ours


def positive_int(name: str, value: Any) -> None:
    """Raises unless an int >= 1."""
    text = f"`{name}` must be an int >= 1. Received: {name}={value!r}. Use 1 or more."
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(text)
    if value < 1:
        raise ValueError(text)


def directory(value: Any) -> None:
    """Raises unless it names a directory."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(
            "`directory` must be a str or a path. Received: "
            f"directory={value!r}. Name one for this run alone."
        )


def same_length(arrays: Sequence[Any]) -> int:
    """The number of examples of arrays, which must agree."""
    lengths = {len(a) if np.ndim(a) else 0 for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "x, y and sample_weight must have the same number of examples, one or "
            f"more. Received: {[np.shape(a) for a in arrays]}. Give every example its "
            "target (and weight)."
        )
    return lengths.pop()


def can_resume(optimizer: Optimizer) -> None:
    """Raises TypeError for an optimizer that is no SGDPlus."""
    if not is_ours(optimizer):
        raise TypeError(
            "ExactResume must be used with an SGDPlus. Received: "
            f"{type(optimizer).__name__}. Compile the model with SGDPlus(...), or with "
            "examples_per_update=None for one update per batch."
        )


def same_saves(numbers: Sequence[int]) -> None:
    """Raises ValueError where workers found different last saves in a directory."""
    if len(set(numbers)) > 1:
        raise ValueError(
            "`directory` must be one that all workers see. Received: workers whose "
            f"last saves there are {list(numbers)}. Use a folder that they share."
        )


def replayable(fit: keras_trainer.Fit) -> None:
    """Raises ValueError where a restart would not see the same batches again."""
    if fit.steps_per_epoch and fit.num_batches is not None:
        raise ValueError(
            "ExactResume with steps_per_epoch must have data that never end. Received: "
            f"steps_per_epoch={fit.steps_per_epoch} and {fit.num_batches} batches. Use "
            "dataset.repeat(), or leave steps_per_epoch out."
        )
    if fit.shuffles:
        raise ValueError(
            "ExactResume must see the same batches again after a restart. Received: "
            "fit(shuffle=True), which draws their order anew. Use fit(shuffle=False); "
            "SeededArrays(x, y, seed=...) has a fresh order in each epoch."
        )
    if keras_trainer.shuffles_differently(fit.dataset) and not fit.steps_per_epoch:
        raise ValueError(
            "ExactResume must see the same batches again after a restart. Received: a "
            "tf.data.Dataset whose shuffle() is drawn anew. Use shuffle(..., seed=..., "
            "reshuffle_each_iteration=False), or repeat() with steps_per_epoch."
        )
