"""Private names of Keras's models and layers: build them, call them, look into them.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import keras_graph, keras_optimizer, names
from keras_sgd_plus._private.types import Model, Optimizer, Structure, Tensor


def build(model: Model, optimizer: Optimizer, specs: tuple[Any, Any, Any]) -> None:
    """Creates the variables of model, loss, metrics and optimizer that are missing.

    A loop's body may create none. They are made as Keras's own first step makes them:
    by a trace of the model in training, of its loss and of its metrics, which runs
    nothing. Goes when Keras has a public name for that.

    Args:
        model: the model in training.
        optimizer: its optimizer.
        specs: `tf.TypeSpec`s of x, y and sample_weight of one group of examples.
    """
    # The class of variables that `tf.Variable` makes eagerly.
    plain = type(keras_optimizer.raw_iterations(optimizer).value)

    def creator(next_creator: Any, **kwargs: Any) -> Any:
        # A tf.function traces twice if it creates variables, which would double the
        # time before the first batch. Variables made like this are not its own.
        if tf.distribute.has_strategy() or not tf.executing_eagerly():
            return next_creator(**kwargs)
        return plain(**kwargs)

    with tf.init_scope(), tf.variable_creator_scope(creator):
        if model.compiled:
            _build_model(model, specs)
        if not optimizer.built:
            with keras.name_scope(optimizer.name):
                optimizer.build(model.trainable_variables)


def _build_model(model: Model, specs: tuple[Any, Any, Any]) -> None:
    parts = [
        getattr(model, name, None) for name in ("_compile_loss", "_compile_metrics")
    ]
    builds_loss, builds_metrics = (p is not None and not p.built for p in parts)
    needs_run = not all(layer.built for layer in layers(model))
    if not (builds_loss or builds_metrics or needs_run):
        return
    y_pred: Any = None
    leaves = [leaf for leaf in keras.tree.flatten(specs[0]) if leaf is not None]
    # A run of the model takes half as long as to trace the loop. It is spared where the
    # graph tells the outputs; not where layers add losses when they are called.
    if leaves and not needs_run and not model.losses:
        y_pred = keras_graph.output_specs(model, leaves[0].shape[0])

    def step(y_pred: Structure) -> None:
        x, y, sample_weight = (_placeholders(part) for part in specs)
        if y_pred is None:
            y_pred = forward(model, x)
        if builds_loss:
            compute_loss(model, x, y, y_pred, sample_weight)
        if builds_metrics:
            model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    backend = names.module(*_CORE)
    names.call(backend, "compute_output_spec", step, y_pred)


# Since Keras 3.16, and before.
_CORE = (
    "keras.src.backend.tensorflow.ops.core",
    "keras.src.backend.tensorflow.core",
)


def _placeholders(specs: Structure) -> Any:
    # Tensors of the graph in the making. A sparse or ragged one is several.
    def placeholder(spec: Any) -> Any:
        if spec is None:
            return None
        parts = tf.nest.flatten(spec, expand_composites=True)
        made = [tf.compat.v1.placeholder(part.dtype, part.shape) for part in parts]
        return tf.nest.pack_sequence_as(spec, made, expand_composites=True)

    return keras.tree.map_structure(placeholder, specs)


def build_from_first_part(model: Model, iterator: Any) -> None:
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
        names.call(model, "_symbolic_build", data_batch=data)


_MAKERS = ("__init__", "_deferred_initialize")  # methods of Keras's variables


def refused_variable(error: BaseException) -> bool:
    """Whether Keras refused to make a variable because a stateless scope was open.

    Goes when Keras has a class for that error.
    """
    # Where a layer's `call` makes the variable, Keras's traceback filter has removed
    # the frame that raised. Then the text is the only sign.
    if "stateless scope" in str(error):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    methods = [vars(c).get(n) for c in keras.Variable.__mro__[:-1] for n in _MAKERS]
    codes = [getattr(method, "__code__", None) for method in methods]
    return trace is not None and trace.tb_frame.f_code in codes


def trace_once(model: Model, specs: tuple[Any, Any, Any]) -> None:
    """Lets model, loss and metrics create variables at a first call, and runs nothing.

    For what `build` cannot do, which opens a stateless scope: variables made from a
    value, as a loss may do when it is first called. Arguments are those of `build`.
    """

    def step() -> None:
        x, y, sample_weight = (_placeholders(part) for part in specs)
        y_pred = forward(model, x)
        compute_loss(model, x, y, y_pred, sample_weight)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    with tf.init_scope():
        tf.function(step, autograph=False).get_concrete_function()


def layers(model: Model) -> list[Any]:
    """The model and every layer in it; goes when `_flatten_layers` is public."""
    return list(names.call(model, "_flatten_layers"))


def forward(model: Model, x: Structure) -> Any:
    """Calls the model for training, as Keras's `train_step` does."""
    if names.attribute(model, "_call_has_training_arg"):
        return model(x, training=True)
    return model(x)


def compute_loss(
    model: Model, x: Structure, y: Structure, y_pred: Structure, sample_weight: Tensor
) -> Any:
    """`compute_loss`, also where an override has no `training` argument.

    Goes when Keras drops support for such overrides (`_compute_loss`, since 3.3).
    """
    arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
    if not hasattr(model, "_compute_loss"):
        return model.compute_loss(**arguments, training=True)
    return names.call(model, "_compute_loss", **arguments, training=True)


def compiled_loss(model: Model, y: Structure, y_pred: Structure) -> Any:
    """The loss of `compile` without any `sample_weight`.

    None without such a loss, or where the model computes its loss by itself. Updates
    the metrics that Keras keeps of several losses. Goes when `compute_loss` can leave
    out what a model adds to it.
    """
    if type(model).compute_loss is not keras.Model.compute_loss:
        return None
    compiled = getattr(model, "_compile_loss", None)
    return None if compiled is None else compiled(y, y_pred, None)


def loss_tracker(model: Model) -> Any:
    """The metric behind the logged `loss`, or None before `compile`."""
    return names.attribute(model, "_loss_tracker")


def compiled_losses(model: Model) -> list[Any]:
    """The `keras.Loss` objects that `compile` was given or made."""
    compiled = getattr(model, "_compile_loss", None)
    flat = getattr(compiled, "_flat_losses", None) or []
    return [entry.loss for entry in flat]


def takes_class_numbers(loss: Any) -> bool:
    """Whether a compiled loss is sparse categorical cross-entropy, whose y are classes.

    Goes when `keras.Loss` says which labels it takes.
    """
    return getattr(loss, "fn", None) is keras.losses.sparse_categorical_crossentropy


def ignored_class(loss: Any) -> Any:
    """The `ignore_class` of a compiled sparse categorical cross-entropy, or None.

    Keras 3.16 has no attribute of that name. Goes when all versions have one.
    """
    return getattr(loss, "_fn_kwargs", {}).get("ignore_class")
