"""Likely causes of training that goes wrong, in the order of what was seen.

Everything is read once, after training, from what `fit` was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Optimizer

USUAL_BATCH = 32  # of `fit`: the batch size for which most rates were chosen
LARGE = 10.0  # inputs and targets above this are called large
USUAL_RATE = 0.01  # of one example, without momentum
_SCALING = (  # layers that may scale inputs
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.BatchNormalization,
)
_STUCK = ("exponential", "relu", "softplus")  # have a slope of 0 on one side


class Cause(NamedTuple):
    """A likely cause.

    Attributes:
        size: how many times what was seen is what is usual; 0 where nothing was seen.
        text: a part of a sentence.
    """

    size: float
    text: str


def seen(
    model: Model,
    optimizer: Optimizer,
    data: Mapping[str, Any],
    may_be_stuck: bool = False,
) -> list[Cause]:
    """The likely causes, those with the most evidence first.

    Args:
        model: after `fit`.
        optimizer: its SGDPlus.
        data: the arguments of `fit`.
        may_be_stuck: whether an output that passes no gradient back is one of them.
    """
    of_data = [_of_inputs(model, data.get("x")), *_of_targets(model, data.get("y"))]
    largest = max(cause.size for cause in of_data)
    found = [*of_data, _of_rate(optimizer, largest)]
    if may_be_stuck:
        found += _of_activation(model)
    return sorted(found, key=lambda cause: -cause.size)


def listed(causes: Sequence[Cause]) -> str:
    """The causes with their numbers, in a sentence."""
    return "; ".join(f"({i}) {cause.text}" for i, cause in enumerate(causes, 1))


def setting(optimizer: Optimizer) -> str:
    """The rate and the momentum as they are, as messages show them."""
    momentum = f" and momentum={optimizer.momentum:g}" if optimizer.momentum else ""
    if keras_optimizer.schedule(optimizer) is not None:
        return f"a learning_rate that changes{momentum}"
    return f"learning_rate={rate(optimizer):g}{momentum}"


def rate(optimizer: Optimizer) -> float:
    """The learning rate as it is now; a schedule or a callable may give it."""
    found = optimizer.learning_rate
    return float(found.numpy() if hasattr(found, "numpy") else found)


def _of_rate(optimizer: Optimizer, of_data: float) -> Cause:
    # With one example per update, a rate for the usual batch is too large by the size
    # of that batch, if momentum stays. A number is no help to data of any size.
    size = optimizer.examples_per_update
    factor, reason = 10, f"the rate is per update of {size} examples"
    if size == 1:
        factor = USUAL_BATCH
        reason = (
            f"the rate is per example, and one for batches of {factor} is {factor} "
            "times too large"
        )
    if keras_optimizer.schedule(optimizer) is not None:
        return Cause(1, f"{reason}: try rates divided by {factor}")
    usual = USUAL_RATE * size * max(1 - optimizer.momentum, 0.01)
    times = abs(rate(optimizer)) / usual
    if of_data > max(times, 1):
        return Cause(times, reason)
    better = min(rate(optimizer) / factor, usual)
    return Cause(max(times, 1), f"{reason}: try learning_rate={better:.1g}")


def _of_inputs(model: Model, x: Any) -> Cause:
    layers = keras_model.layers(model)
    has_ids = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    largest = 0.0
    for array in _arrays(x):
        if array.dtype.kind == "f":
            finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                row = int(finite.argmin())
                return Cause(math.inf, f"inputs that are not finite: row {row} of x")
        elif has_ids:
            continue
        largest = max(largest, _size(array))
    if largest > LARGE and not any(isinstance(x, _SCALING) for x in layers):
        text = (
            f"inputs that are not scaled: x has numbers up to {largest:.4g} in size; "
            "bring each feature to about -1 to 1 (keras.layers.Normalization, say)"
        )
        return Cause((largest / LARGE) ** 2, text)
    return Cause(0, "inputs that are not scaled to about -1 to 1")


def _of_targets(model: Model, y: Any) -> list[Cause]:
    losses, arrays = keras_model.compiled_losses(model), list(_arrays(y))
    general = Cause(0, "labels out of the range that the loss takes")
    if len(losses) != 1 or len(arrays) != 1:
        return [general]
    if all(keras_model.takes_class_numbers(loss) for loss in losses):
        ignored = [keras_model.ignored_class(loss) for loss in losses]
        labels = arrays[0][~np.isin(arrays[0], [i for i in ignored if i is not None])]
        return [_of_labels(model, labels)] if labels.size else [general]
    if not np.isfinite(arrays[0]).all():
        row = int(np.isfinite(arrays[0]).reshape(len(arrays[0]), -1).all(1).argmin())
        return [Cause(math.inf, f"targets that are not finite: row {row} of y")]
    largest = _size(arrays[0])
    if largest <= LARGE:
        return [general]
    text = (
        f"targets that are not scaled: y has numbers up to {largest:.4g} in size; "
        "divide them by their standard deviation, and multiply predictions by it"
    )
    return [Cause(largest / LARGE, text)]


def _of_labels(model: Model, labels: np.ndarray) -> Cause:
    smallest, largest = labels.min(), labels.max()
    known = f"labels out of range: y has labels from {smallest:g} to {largest:g}"
    outputs = getattr(model, "outputs", None) or []
    size = outputs[0].shape[-1] if len(outputs) == 1 else None
    if size is None:
        text = f"{known}, and they must be below the number of outputs"
        return Cause(math.inf if smallest < 0 else 0, text)
    text = f"{known}, and the model has {size} outputs, for 0 to {size - 1}"
    return Cause(0 if 0 <= smallest <= largest < size else math.inf, text)


def _of_activation(model: Model) -> list[Cause]:
    last = model
    while isinstance(last, keras.Sequential) and last.layers:
        last = last.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", "")
    if name not in _STUCK:
        return []
    text = (
        f"an output that is stuck: {name} passes hardly any gradient back where it is "
        "near 0"
    )
    return [Cause(0.5, text)]


def _size(array: np.ndarray) -> float:
    return max(-float(array.min()), float(array.max()))


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
