"""Checks of the arguments of callbacks, and of the run that they are used in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_sgd_plus._loop import examples
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._rule.ours import is_ours, per_example, unwrap


def positive_int(name: str, value: Any) -> None:
    """Raises unless an int >= 1."""
    received = f"{name}={settings.shown(value)}"
    text = f"`{name}` must be an int >= 1. Received: {received}. Use 1 or more."
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(text)
    if value < 1:
        raise ValueError(text)


def directory(value: Any) -> None:
    """Raises unless it names a directory."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(
            "`directory` must be a str or a path. Received: "
            f"directory={settings.shown(value)}. Name one for this run alone."
        )


def seed(value: Any) -> int:
    """Gives a Python int; raises if the argument is no int of 63 bits."""
    if value is None:
        raise TypeError(
            "`seed` must be an int from 0 to 2**63 - 1. Received: seed=None. Use "
            "seed=0, say: a derived seed would give another order in the next process."
        )
    return settings.checked("seed", value)


def start_epoch(value: Any) -> int | None:
    """Gives None or a Python int; raises for others."""
    text = (
        "`start_epoch` must be an int >= 0, or None. Received: "
        f"start_epoch={settings.shown(value)}. Use None for polynomial decay."
    )
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        raise TypeError(text)
    if value is not None and value < 0:
        raise ValueError(text)
    return value


def is_reached(epoch: int | None, params: Mapping[str, Any]) -> None:
    """Raises ValueError if `fit` ends before that epoch."""
    epochs = params["epochs"]
    if epoch is not None and epoch >= epochs:
        raise ValueError(
            "`start_epoch` must be an epoch of fit, which counts them from 0. "
            f"Received: start_epoch={epoch} and fit(epochs={epochs}). Use {epochs - 1} "
            "or less."
        )


def only_averages(model: Model, callbacks: Iterable[Any]) -> None:
    """Raises ValueError if an `AverageWeights` is not alone in averaging weights.

    Args:
        model: in training.
        callbacks: those that average.
    """
    averaging = [type(c).__name__ for c in callbacks]
    outer = unwrap(model.optimizer)
    for optimizer in getattr(outer, "optimizers", [outer]):
        if getattr(optimizer, "use_ema", False):
            averaging.append(f"{type(optimizer).__name__}(use_ema=True)")
    if len(averaging) > 1:
        raise ValueError(
            "AverageWeights must be alone in putting averages into the model. "
            f"Received: {' and '.join(averaging)}. Leave out all but one of them: "
            "use_ema=True averages after each update, AverageWeights after each batch."
        )


def same_length(*parts: Any) -> int:
    """The number of examples in x, y and sample_weight, which must agree."""
    x, y, sample_weight = parts
    named = examples.named_leaves((x, y, sample_weight))
    lengths = [len(a) if a.ndim else 0 for _, a in named]
    if not lengths or 0 in lengths or len(set(lengths)) > 1:
        wrong = next((i for i, n in enumerate(lengths) if n != lengths[0]), 0)
        some = [named[i] for i in sorted({0, wrong}) if named]
        shown = [f"{name} of shape {array.shape}" for name, array in some]
        raise ValueError(
            "x, y and sample_weight must have the same number of examples, one or "
            f"more. Received: {' and '.join(shown) or 'no array'}. Give every example "
            "its target (and weight)."
        )
    return lengths[0]


def can_resume(optimizer: Optimizer) -> None:
    """Raises TypeError for an optimizer that is no SGDPlus."""
    if not is_ours(optimizer):
        raise TypeError(
            "ExactResume must be used with an SGDPlus. Received: "
            f"{type(optimizer).__name__}. Compile the model with SGDPlus(...), or with "
            "examples_per_update=None for one update per batch."
        )


def can_record(optimizer: Optimizer) -> None:
    """Raises TypeError for an optimizer without a loop over examples."""
    if per_example(optimizer) is None:
        kind = type(optimizer).__name__
        if is_ours(optimizer):
            kind = f"{kind} with examples_per_update=None"
        raise TypeError(
            "ExampleLog must be used with an SGDPlus, whose loop sees each example. "
            f"Received: {kind}. Compile the model with SGDPlus(...)."
        )


def log_arguments(gradient_norm: Any, prediction: Any, id: Any, path: Any) -> None:
    """Raises TypeError for arguments of an ExampleLog of another kind."""
    for name, value in {
        "gradient_norm": gradient_norm,
        "prediction": prediction,
    }.items():
        if not isinstance(value, bool):
            raise TypeError(
                f"`{name}` must be a bool. Received: {name}={settings.shown(value)}. "
                f"Use ExampleLog({name}=True) to keep that quantity."
            )
    is_id = isinstance(id, (str, int)) and not isinstance(id, bool) and id != ""
    if id is not None and not is_id:
        raise TypeError(
            "`id` must be a key of the inputs, the number of a column, or None. "
            f'Received: id={settings.shown(id)}. Use id="row" for '
            'x={..., "row": rows}, or id=0 if the first column of x has the rows.'
        )
    if path is not None and (
        not isinstance(path, (str, os.PathLike)) or not os.fspath(path)
    ):
        raise TypeError(
            "`path` must be a str or a path, or None. Received: "
            f"path={settings.shown(path)}. Name a directory for this log alone."
        )


def is_kept(name: str, is_kept: bool) -> None:
    """Raises RuntimeError for a quantity that an ExampleLog does not keep."""
    if not is_kept:
        raise RuntimeError(
            f"ExampleLog keeps `{name}` only if it is asked for. Received: "
            f"ExampleLog({name}=False). Use ExampleLog({name}=True)."
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
