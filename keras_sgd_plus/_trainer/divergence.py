"""A loss that is NaN or infinite at the end of `fit`, and its likely causes.

Everything is read once, after training, from what `fit` was given and has logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer

USUAL_BATCH = 32  # of `fit`: the batch size for which most rates were chosen
LARGE = 10.0  # inputs above this are called large


def report(model: Model, optimizer: Optimizer, data: Mapping[str, Any]) -> str | None:
    """The warning for a last epoch whose loss is not finite, or None.

    Args:
        model: after `fit`.
        optimizer: its SGDPlus.
        data: the arguments of `fit`.
    """
    if optimizer.nonfinite != "propagate":  # which has said it already
        return None
    loss = _last_loss(model)
    if loss is None or math.isfinite(loss):
        return None
    received, advice = _rate(optimizer)
    inputs = _of_inputs(model, data.get("x"))
    causes = [
        advice,
        inputs,
        _of_labels(model, data.get("y")),
        'a single bad example: SGDPlus(..., nonfinite="raise") stops before the first '
        "and names it",
    ]
    listed = "; ".join(f"({i}) {cause}" for i, cause in enumerate(causes, 1))
    return (
        f"The loss should be finite at the end of fit. Received: loss={loss}, with "
        f"{received}. Weights that are NaN stay so: make the model anew. Likely "
        f"causes, in this order: {listed}."
    )


def _last_loss(model: Model) -> float | None:
    history = getattr(getattr(model, "history", None), "history", None) or {}
    losses = history.get("loss")
    if not losses or np.ndim(losses[-1]):
        return None
    return float(losses[-1])


def _rate(optimizer: Optimizer) -> tuple[str, str]:
    # The setting as it is, and advice. With one example per update, a rate for the
    # usual batch is too large by the size of that batch, if momentum stays.
    size = optimizer.examples_per_update
    factor = 10
    reason = f"the rate is per update of {size} examples"
    if size == 1:
        factor = USUAL_BATCH
        reason = (
            f"the rate is per example, and one for batches of {factor} is {factor} "
            "times too large"
        )
    momentum = f" and momentum={optimizer.momentum:g}" if optimizer.momentum else ""
    if keras_optimizer.schedule(optimizer) is not None:
        received = f"a learning_rate that changes{momentum}"
        return received, f"{reason}: try rates divided by {factor}"
    rate = float(optimizer.learning_rate.numpy())
    received = f"learning_rate={rate:g}{momentum}"
    return received, f"{reason}: try learning_rate={rate / factor:.1g}"


def _of_inputs(model: Model, x: Any) -> str:
    layers = keras_model.layers(model)
    has_ids = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    largest = 0.0
    for array in _arrays(x):
        if array.dtype.kind == "f":
            finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                return f"inputs that are not finite: row {int(finite.argmin())} of x"
        elif has_ids:
            continue
        largest = max(largest, -float(array.min()), float(array.max()))
    if largest > LARGE:
        return (
            f"inputs that are not scaled: x has numbers up to {largest:.4g} in size; "
            "bring each feature to about -1 to 1 (keras.layers.Normalization, say)"
        )
    return "inputs that are not scaled to about -1 to 1"


def _of_labels(model: Model, y: Any) -> str:
    general = "labels out of the range that the loss takes"
    losses = keras_model.compiled_losses(model)
    arrays = list(_arrays(y))
    sparse = all(keras_model.takes_class_numbers(loss) for loss in losses)
    if len(losses) != 1 or len(arrays) != 1 or not sparse:
        return general
    smallest, largest = arrays[0].min(), arrays[0].max()
    known = f"labels out of range: y has labels from {smallest:g} to {largest:g}"
    outputs = getattr(model, "outputs", None) or []
    size = outputs[0].shape[-1] if len(outputs) == 1 else None
    if size is None:
        return f"{known}, and they must be below the number of outputs"
    return f"{known}, and the model has {size} outputs, for 0 to {size - 1}"


def _arrays(part: Any) -> Iterator[np.ndarray]:
    # The arrays of numbers in x or y; data of other kinds cannot be looked at.
    for leaf in keras.tree.flatten(part):
        if not hasattr(leaf, "__array__") or not getattr(leaf, "shape", ()):
            continue
        try:
            array = leaf.numpy() if hasattr(leaf, "numpy") else np.asarray(leaf)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue
        if array.dtype.kind in "fiub" and array.size:
            yield array
