"""Wraps Keras's trainer, so that an optimizer gets the train step.

Keras shows an optimizer gradients, never the data, so a loop over examples has to take
the place of the whole train step. This module wraps `train_step` of Keras's TensorFlow
trainer class: a model compiled with an optimizer that steps per example is passed to
that optimizer, any other model to the original. A model
keeps nothing but a wrapped train function, which Keras neither saves nor clones, so a
reloaded model is dispatched like a new one. `_forms/installation.py` wraps functions
of Keras's backend; no other code alters Keras.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._fit import fits
from keras_sgd_plus._fit.train_function import TrainFunction
from keras_sgd_plus._forms import installation
from keras_sgd_plus._private import keras_model, keras_optimizer, keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer, Structure
from keras_sgd_plus._report import bad_examples, channel
from keras_sgd_plus._rule.ours import is_ours, per_example, unwrap
from keras_sgd_plus._rule.rule import expect_batches

_MARK = "_keras_sgd_plus_original"


def install() -> None:
    """Wraps methods of Keras's trainer, each once.

    `train_step` to hand batches over, `make_train_function` to notice settings that
    change on a live optimizer, `reset_metrics` to count per epoch, as metrics do;
    `fit` to know which one runs, and to say at its end what went wrong;
    `_make_function` and `_maybe_symbolic_build` so that `fit` runs on several workers
    and on parts of unequal size.

    Raises:
        RuntimeError: this version of Keras lacks one that every training needs.
    """
    for name, owner in keras_trainer.trainer_methods().items():
        _wrap(name, owner)
    keras_optimizer.seed_name()  # a loop could not find it out
    installation.install()


def install_fit() -> None:
    """Wraps `fit` alone, for callbacks that work without a loop over examples, too."""
    _wrap("fit", keras_trainer.owner_of("fit"))


def install_loading(register: Callable[[], None]) -> None:
    """Registers with Keras now, and again before each model that is loaded.

    A program may clear `keras.saving.get_custom_objects()`, as a guide of Keras does.
    """
    _registers.append(register)
    register()
    _wrap("compile_from_config", keras_trainer.owner_of("compile_from_config"))


_registers: list[Callable[[], None]] = []
# (model, arguments of `fit`) -> a context in which that `fit` runs, with its arguments
Around = Callable[
    [Model, Mapping[str, Any]], contextlib.AbstractContextManager[Mapping[str, Any]]
]
_around: list[Around] = []


def around_fit(around: Around) -> None:
    """Lets every wrapped `fit` run in a context, which may change its arguments."""
    _around.append(around)


def _wrap(name: str, owner: type) -> None:
    original: Any = vars(owner)[name]
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapped(self: object, *args: object, **kwargs: Any) -> object:
        return _WRAPPERS[name](original, self, *args, **kwargs)

    setattr(wrapped, _MARK, original)
    setattr(owner, name, wrapped)


def _fit(
    original: Callable[..., Any], self: Model, *args: object, **kwargs: Any
) -> object:
    names = list(inspect.signature(original).parameters)[1:]
    named = dict(zip(names, args, strict=False))
    if len(named) < len(args) or named.keys() & kwargs.keys():
        return original(self, *args, **kwargs)  # which says what is wrong
    arguments: Mapping[str, Any] = {**named, **kwargs}
    if _trains_ours(self):
        batch_size = arguments.get("batch_size")
        _need_int(batch_size)
        x, y, weights = (arguments.get(n) for n in ("x", "y", "sample_weight"))
        data = x, y, weights
        if batch_size is None and keras_trainer.are_arrays(data):
            batch_size = keras_trainer.BATCH_SIZE
        expect_batches(per_example(self.optimizer), batch_size)
    with contextlib.ExitStack() as stack:
        for around in _around:
            arguments = stack.enter_context(around(self, arguments))
        run, arranged = stack.enter_context(fits.running(self, arguments))
        history = original(self, **arranged)
        run.end()
    return history


def _need_int(batch_size: object) -> None:
    # TensorFlow's own error does not name the argument.
    if isinstance(batch_size, float):
        is_size = math.isfinite(batch_size) and batch_size >= 1
        meant = int(batch_size) if is_size else 1000
        raise TypeError(
            "`batch_size` must be an int, or None. Received: "
            f"batch_size={batch_size!r}. Write fit(batch_size={meant})."
        )


def _train_step(
    original: Callable[..., Any], self: Model, data: Structure
) -> Structure:
    optimizer: Any = getattr(self, "optimizer", None)
    stepping = per_example(optimizer)
    if stepping is not None:
        return stepping.train_step(self, data)
    parts = getattr(unwrap(optimizer), "optimizers", None)
    if parts is not None and self.run_eagerly and not optimizer.built:
        # A MultiOptimizer may pick its parts by a function, when it is built: do that
        # before the first of them changes a weight.
        optimizer.build(self.trainable_variables)
    _refuse_halves(optimizer)
    logs = original(self, data)
    # While tracing they are built now, and nothing has run.
    _refuse_halves(optimizer)
    return logs


def _make_train_function(
    original: Callable[..., Any], self: Any, force: bool = False
) -> object:
    optimizer = unwrap(getattr(self, "optimizer", None))
    if not is_ours(optimizer):
        return original(self, force)
    _need_methods(self, optimizer)
    # Derived seeds are of each process: all take that of the first worker.
    optimizer.seed = replicas.gathered(self.distribute_strategy, optimizer.seed)[0]
    run = fits.of(self)
    if run is None or not run.is_nested:  # what a callback does belongs to its fit
        number = bad_examples.OUTSIDE if run is None else run.number
        bad_examples.begin_fit(optimizer, number)
    current, earlier = self.train_function, None
    if isinstance(current, TrainFunction):
        current.forward = None  # of a fit that was interrupted
        if not force and current.is_stale(optimizer):
            earlier, force = current, True
    elif keras_trainer.is_stock_train_function(current):
        force = True  # made before the optimizer stepped per example
    if current is None or force:
        made = None if earlier is None else earlier.kept_for(optimizer)
        if made is None:
            original(self, True)
            made = self.train_function
        self.train_function = TrainFunction(self, optimizer, made, earlier)
    return self.train_function


def _need_methods(model: Model, optimizer: Optimizer) -> None:
    # Raises where this training needs a method that could not be wrapped.
    if optimizer.nonfinite == "skip" or optimizer.max_loss_fraction is not None:
        keras_trainer.need("reset_metrics")
    for name in replicas.needed_methods(model.distribute_strategy):
        keras_trainer.need(name)


def _reset_metrics(original: Callable[..., Any], self: Model) -> None:
    original(self)
    optimizer = per_example(getattr(self, "optimizer", None))
    if optimizer is not None:
        channel.begin_epoch(optimizer)


def _make_function(
    original: Callable[..., Any], self: Model, step_function: Callable[..., Any]
) -> object:
    # Keras averages logs over an axis that scalars have not, where there are several
    # workers (https://github.com/keras-team/keras/issues/20585).
    def step(data: Structure) -> Structure:
        logs = step_function(data)
        return keras.tree.map_structure(lambda v: tf.expand_dims(v, 0), logs)

    return original(self, step if _has_workers(self) else step_function)


def _maybe_symbolic_build(
    original: Callable[..., Any],
    self: Model,
    iterator: Any = None,
    data_batch: object = None,
) -> object:
    several = self.distribute_strategy.num_replicas_in_sync > 1
    if several and iterator is not None and _trains_ours(self):
        return keras_model.build_from_first_part(self, iterator)
    return original(self, iterator, data_batch)


def _compile_from_config(
    original: Callable[..., Any], self: Model, config: object
) -> None:
    for register in _registers:
        register()
    original(self, config)


# Method -> what is called in its place, with the original and the arguments.
_WRAPPERS = {
    "compile_from_config": _compile_from_config,
    "fit": _fit,
    "train_step": _train_step,
    "make_train_function": _make_train_function,
    "reset_metrics": _reset_metrics,
    "_make_function": _make_function,
    "_maybe_symbolic_build": _maybe_symbolic_build,
}


def _trains_ours(model: Model) -> bool:
    return is_ours(getattr(model, "optimizer", None))


def _has_workers(model: Model) -> bool:
    return _trains_ours(model) and replicas.has_workers(model.distribute_strategy)


def uninstall() -> None:
    """Restores Keras's own functions. The next SGDPlus made installs ours again.

    `compile_from_config` stays wrapped: it only registers the class.
    """
    for name, owner in keras_trainer.trainer_methods().items():
        original = getattr(vars(owner)[name], _MARK, None)
        if original is not None:
            setattr(owner, name, original)
    installation.uninstall()


def stock_train_step(model: Model, data: Structure) -> Structure:
    """Keras's own train step: one update for the whole batch."""
    owner = keras_trainer.trainer_methods()["train_step"]
    current: Any = vars(owner)["train_step"]
    return getattr(current, _MARK, current)(model, data)


def _refuse_halves(optimizer: Optimizer) -> None:
    # keras.optimizers.MultiOptimizer (Keras 3.15): each part sees only some gradients.
    parts = getattr(unwrap(optimizer), "optimizers", None)
    for part in parts or ():
        if per_example(part) is not None:
            raise NotImplementedError(
                "A per-example SGDPlus must be a model's only optimizer. Received: "
                f"{part.name!r} inside a MultiOptimizer, each part of which would run "
                "its own loop. Use SGDPlus(..., examples_per_update=None) there, for "
                "one update per batch."
            )
