"""Every name of Keras that is not public, in one place.

Read in the sources of Keras 3.15. Each function says what would let it go.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


def trainer_methods() -> dict[str, tuple[type, list[str]]]:
    """Name -> (the class that defines it, parameters) of the methods `_hook` wraps.

    Not `keras.Model` itself: classes made with `class X(Trainer, Layer)` share only
    the trainer. Goes when Keras exports its TensorFlow trainer.
    """
    return {
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
    """What a running `fit` was given, as far as it can be seen.

    Attributes:
        dataset: what the batches come from: a `PyDataset`, `tf.data.Dataset`, or None.
        shuffles: whether Keras shuffles it.
        num_batches: of one pass through it, or None where it never ends.
        steps_per_epoch, initial_epoch: as for `fit`.
    """

    dataset: Any
    shuffles: bool
    num_batches: int | None
    steps_per_epoch: int | None
    initial_epoch: int


def fit_in_progress() -> Fit | None:
    """The `fit` that the caller is called from, or None where it is not found.

    Keras tells a callback nothing of the data, so this looks at the local variables of
    `fit`. Goes when it does.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        found = frame.f_locals
        if frame.f_code.co_name == "fit" and "epoch_iterator" in found:
            iterator = found["epoch_iterator"]
            adapter = iterator.data_adapter
            shuffles = getattr(adapter, "shuffle", getattr(adapter, "_shuffle", False))
            return Fit(
                getattr(adapter, "py_dataset", getattr(adapter, "_dataset", None)),
                bool(shuffles),
                adapter.num_batches,
                iterator.steps_per_epoch,
                found["initial_epoch"],
            )
        frame = frame.f_back
    return None


def set_initial_epoch(model: Any, epoch: int | None) -> None:
    """Where a `fit` that is beginning begins, as Keras's `BackupAndRestore` says it."""
    model._initial_epoch = epoch


def drawn_anew(dataset: Any) -> bool:
    """Whether a `tf.data.Dataset` shuffles otherwise in each pass, or each process.

    Goes when a dataset can be asked.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return False
    if getattr(dataset, "_reshuffle_each_iteration", False):
        return True
    seeds = [getattr(dataset, n) for n in ("_seed", "_seed2") if hasattr(dataset, n)]
    if seeds and not any(int(seed) for seed in seeds):
        return True
    return any(drawn_anew(each) for each in dataset._inputs())


def is_stock_train_function(function: Any) -> bool:
    """Whether it is what Keras's own `make_train_function` makes."""
    python = getattr(function, "python_function", function)
    owner = _definer("make_train_function").__qualname__
    return getattr(python, "__qualname__", "").startswith(f"{owner}._make_function")


def has_default_metrics(model: Any) -> bool:
    """Whether `compute_metrics` is Keras's own, whose logs need only the metrics."""
    stock = _definer("compute_metrics").compute_metrics
    return getattr(model.compute_metrics, "__func__", None) is stock


def _definer(method: str) -> type:
    return next(c for c in keras.Model.__mro__ if method in vars(c))


def build(model: Any, optimizer: Any, data: tuple[Any, Any, Any]) -> None:
    """Creates the variables of model, loss, metrics and optimizer that are missing.

    A loop's body may create none. `_symbolic_build` is what Keras's JAX trainer calls
    for the same reason; goes when Keras has a public name for it.
    """
    plain = type(raw_iterations(optimizer).value)  # what tf.Variable makes eagerly

    def creator(next_creator: Any, **kwargs: Any) -> Any:
        # A tf.function that creates variables is traced twice, which would double the
        # time before the first batch. Made like this they are not its own.
        if tf.distribute.has_strategy() or not tf.executing_eagerly():
            return next_creator(**kwargs)
        return plain(**kwargs)

    with tf.init_scope(), tf.variable_creator_scope(creator):
        if model.compiled:
            model._symbolic_build(data_batch=data)
        if not optimizer.built:
            with keras.name_scope(optimizer.name):
                optimizer.build(model.trainable_variables)


def build_from_first_part(model: Any, iterator: Any) -> None:
    """Builds a model from the first replica's part of a first batch.

    Keras tries to average the parts, which fails if they are of unequal size, and on
    several workers (https://github.com/keras-team/keras/issues/20585). Goes when that
    is mended.
    """
    strategy = model.distribute_strategy
    data = None
    for _, _, batches in iterator:
        data = keras.tree.map_structure(
            lambda part: strategy.experimental_local_results(part)[0], next(batches)
        )
        break
    with strategy.scope():
        model._symbolic_build(data_batch=data)


def is_about_creation(error: ValueError) -> bool:
    """Whether Keras refused a variable because a stateless scope was open."""
    return "stateless scope" in str(error)


def trace_once(model: Any, data: tuple[Any, Any, Any]) -> None:
    """Lets model, loss and metrics create variables at a first call, and runs nothing.

    For what `_symbolic_build` cannot do, which opens a stateless scope: variables made
    from a value, as a loss may do when it is first called.
    """

    def step(x: Any, y: Any, sample_weight: Any) -> None:
        y_pred = forward(model, x)
        compute_loss(model, x, y, y_pred, sample_weight)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    with tf.init_scope():
        specs: Any = keras.tree.map_structure(
            lambda t: None if t is None else tf.TensorSpec(t.shape, t.dtype), data
        )
        tf.function(step, autograph=False).get_concrete_function(*specs)


def layers(model: Any) -> list[Any]:
    """The model and every layer in it; goes when `_flatten_layers` is public."""
    return list(model._flatten_layers())


def forward(model: Any, x: Any) -> Any:
    """Calls the model for training, as Keras's `train_step` does."""
    if getattr(model, "_call_has_training_arg", True):
        return model(x, training=True)
    return model(x)


def compute_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """`compute_loss`, also where an override has no `training` argument.

    Goes when Keras drops support for such overrides (`_compute_loss`, since 3.3).
    """
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
    )


def loss_tracker(model: Any) -> Any:
    """The metric behind the logged `loss`, or None before `compile`."""
    return model._loss_tracker


def compiled_losses(model: Any) -> list[Any]:
    """The `keras.Loss` objects that `compile` was given or made."""
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    return [entry.loss for entry in flat]


def inside_strategy_run() -> bool:
    """Whether the caller runs in `strategy.run`, where `fit` calls a train step.

    Elsewhere TensorFlow hands out a private subclass of the context, even under no
    strategy; goes when Keras tells an optimizer that it is being fitted.
    """
    return type(tf.distribute.get_replica_context()) is tf.distribute.ReplicaContext


def global_seed_state() -> Any:
    """The seed variable that `keras.random` uses without a seed, if there is one."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def is_seed(variable: Any) -> bool:
    """Whether it is the state of a `keras.random.SeedGenerator`.

    By the name that Keras gives it: generators are found in layers, but also in losses,
    metrics and plain attributes. Goes when Keras lists them.
    """
    return variable.name == "seed_generator_state"


def lowered_functions() -> dict[str, tuple[Any, list[str]]]:
    """Name -> (module, parameters) of the backend's functions that `_hook` wraps.

    `keras.ops` and all layers look them up in these modules at each call. Goes when
    XLA:CPU compiles the native forms well.
    """
    from keras.src.backend.tensorflow import nn, numpy, random

    window = ["strides", "padding", "data_format"]
    return {
        "conv": (nn, ["inputs", "kernel", *window, "dilation_rate"]),
        "max_pool": (nn, ["inputs", "pool_size", *window]),
        "batch_normalization": (
            nn,
            ["x", "mean", "variance", "axis", "offset", "scale", "epsilon"],
        ),
        "moments": (nn, ["x", "axes", "keepdims", "synchronized"]),
        "sparse_categorical_crossentropy": (
            nn,
            ["target", "output", "from_logits", "axis"],
        ),
        "add": (numpy, ["x1", "x2"]),
        "matmul": (numpy, ["x1", "x2"]),
        "take": (numpy, ["x", "indices", "axis"]),
        "dropout": (random, ["inputs", "rate", "noise_shape", "seed"]),
    }


def draw_seed(seed: Any) -> Any:
    """The seed tensor of the next draw, which a `SeedGenerator` counts; (2,)."""
    from keras.src.backend.tensorflow.random import _cast_seed
    from keras.src.random.seed_generator import draw_seed

    return _cast_seed(draw_seed(seed))


def raw_iterations(optimizer: Any) -> Any:
    """The counter of updates before division by `gradient_accumulation_steps`."""
    return optimizer._iterations


def built_variables(optimizer: Any) -> list[Any]:
    """The trainable variables that the optimizer was built with."""
    return list(optimizer._trainable_variables)


def moving_averages(optimizer: Any) -> list[Any]:
    """The averages of `use_ema`, one per built variable, None where it has none."""
    return list(getattr(optimizer, "_model_variables_moving_average", ()))


def accumulated_gradients(optimizer: Any) -> list[Any]:
    """The sums of `gradient_accumulation_steps`, one per built variable."""
    return list(getattr(optimizer, "_accumulated_gradients", ()))


def velocities(optimizer: Any) -> list[Any]:
    """The state that momentum keeps, one per built variable, None where it has none."""
    return list(optimizer.momentums)


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether weight decay applies, by Keras's own test on the `tf.Variable`.

    The name that `exclude_from_weight_decay` matches is that of the `tf.Variable`, so
    the test has to see that, outside any scope that hides it.
    """
    return optimizer._use_weight_decay(native(variable))


def variable_index(optimizer: Any, variable: Any) -> int:
    """The position of a trainable variable among those the optimizer was built with.

    Raises:
        ValueError: the optimizer was built for other variables (Keras's own message).
    """
    optimizer._check_variables_are_known([variable])
    return optimizer._get_variable_index(variable)


def native(variable: Any) -> Any:
    """The `tf.Variable` of a Keras variable, which may be one per replica."""
    return variable if isinstance(variable, tf.Variable) else variable.value
