"""A loss that is NaN or infinite at the end of `fit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._trainer import causes

_BAD_EXAMPLE = (
    'a single bad example: SGDPlus(..., nonfinite="raise") stops before the first and '
    "names it"
)


def report(model: Model, optimizer: Optimizer, data: Mapping[str, Any]) -> str | None:
    """The warning for a last epoch whose loss is not finite, or None.

    Args:
        model: after `fit`.
        optimizer: its SGDPlus.
        data: the arguments of `fit`.
    """
    if optimizer.nonfinite != "propagate":  # which has said it already
        return None
    if optimizer.examples_per_update is None:  # since a callback has set it
        return None
    loss = _last_loss(model)
    if loss is None or math.isfinite(loss):
        return None
    found = causes.seen(model, optimizer, data)
    listed = causes.listed([*found, causes.Cause(0, _BAD_EXAMPLE)])
    return (
        f"The loss should be finite at the end of fit. Received: loss={loss}, with "
        f"{causes.setting(optimizer)}. Weights that are NaN stay so: make the model "
        f"anew. Likely causes, in this order: {listed}."
    )


def _last_loss(model: Model) -> float | None:
    history = getattr(getattr(model, "history", None), "history", None) or {}
    losses = history.get("loss")
    if not losses or np.ndim(losses[-1]):
        return None
    return float(losses[-1])
