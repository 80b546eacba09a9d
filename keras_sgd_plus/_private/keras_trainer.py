"""Private names of Keras's TensorFlow trainer and of its `fit`.

Read in the sources of Keras 3.15.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Model


def trainer_methods() -> dict[str, tuple[type, list[str] | None]]:
    """Name -> (the class that defines it, parameters) of the methods that we wrap.

    Parameters are None where the wrapper hands on whatever it is given.

    Not `keras.Model` itself: classes made with `class X(Trainer, Layer)` share only
    the trainer. Goes when Keras exports its TensorFlow trainer.
    """
    return {
        "fit": (_definer("fit"), None),
        "train_step": (_definer("train_step"), ["self", "data"]),
        "make_train_function": (_definer("make_train_function"), ["self", "force"]),
        "reset_metrics": (_definer("reset_metrics"), ["self"]),
        "_make_function": (_definer("_make_function"), ["self", "step_function"]),
        "_maybe_symbolic_build": (
            _definer("_maybe_symbolic_build"),
            ["self", "iterator", "data_batch"],
        ),
    }


@dataclass(frozen=True)
class Fit:
    """The arguments of a running `fit`, as far as they can be seen.

    Attributes:
        dataset: the source of the batches: a `PyDataset`, `tf.data.Dataset`, or None.
        shuffles: whether Keras shuffles it.
        num_batches: of one pass through it, or None where it never ends.
        steps_per_epoch: as for `fit`.
        initial_epoch: as for `fit`.
        array_batch_size: examples per batch of arrays, or None for other data.
    """

    dataset: Any
    shuffles: bool
    num_batches: int | None
    steps_per_epoch: int | None
    initial_epoch: int
    array_batch_size: int | None


def fit_in_progress() -> Fit | None:
    """The `fit` that the caller is called from, or None where it is not found.

    Keras tells a callback nothing of the data, so this looks at the local variables of
    `fit`. Goes when Keras hands callbacks their data.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        found = frame.f_locals
        if frame.f_code.co_name == "fit" and "epoch_iterator" in found:
            iterator = found["epoch_iterator"]
            adapter = iterator.data_adapter
            is_array = type(adapter).__name__ == "ArrayDataAdapter"
            shuffles = getattr(adapter, "shuffle", getattr(adapter, "_shuffle", False))
            return Fit(
                getattr(adapter, "py_dataset", getattr(adapter, "_dataset", None)),
                bool(shuffles),
                adapter.num_batches,
                iterator.steps_per_epoch,
                found["initial_epoch"],
                getattr(adapter, "_batch_size", None) if is_array else None,
            )
        frame = frame.f_back
    return None


def begins_epoch() -> bool:
    """Whether `fit` is the caller's caller, and not an `evaluate` inside it.

    Both reset metrics; `fit` does so before each epoch. Goes when Keras tells an
    optimizer of epochs.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if name in ("fit", "evaluate") and module.startswith("keras."):
            return name == "fit"
        frame = frame.f_back
    return False


def set_initial_epoch(model: Model, epoch: int | None) -> None:
    """Sets the epoch at which a beginning `fit` begins, as `BackupAndRestore` does."""
    model._initial_epoch = epoch


def shuffles_differently(dataset: Any) -> bool:
    """Whether a `tf.data.Dataset` has another order in each pass, or each process.

    Goes when a dataset can be asked.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return False
    if getattr(dataset, "_reshuffle_each_iteration", False):
        return True
    seeds = [getattr(dataset, n) for n in ("_seed", "_seed2") if hasattr(dataset, n)]
    if seeds and not any(int(seed) for seed in seeds):
        return True
    return any(shuffles_differently(each) for each in dataset._inputs())


def is_stock_train_function(function: Any) -> bool:
    """Whether Keras's own `make_train_function` has made it."""
    python = getattr(function, "python_function", function)
    owner = _definer("make_train_function").__qualname__
    return getattr(python, "__qualname__", "").startswith(f"{owner}._make_function")


def has_default_metrics(model: Model) -> bool:
    """Whether `compute_metrics` is Keras's own, whose logs need only the metrics."""
    stock = _definer("compute_metrics").compute_metrics
    return getattr(model.compute_metrics, "__func__", None) is stock


def inside_strategy_run() -> bool:
    """Whether the caller runs in `strategy.run`, where `fit` calls a train step.

    Elsewhere TensorFlow hands out a private subclass of the context, even under no
    strategy; goes when Keras tells an optimizer that it is being fitted.
    """
    return type(tf.distribute.get_replica_context()) is tf.distribute.ReplicaContext


def _definer(method: str) -> type:
    return next(c for c in keras.Model.__mro__ if method in vars(c))
