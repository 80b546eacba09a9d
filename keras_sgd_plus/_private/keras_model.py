"""Private names of Keras's models: read their graph, build them, call them.

A loop's body may create no variable, so `build` makes all of them before, as Keras's
own first step would. It spares a run of the model where the graph of a functional model
tells the outputs. The loop calls the model and its loss as Keras's `train_step` does.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import (
    Layer,
    Model,
    Optimizer,
    Parts,
    Structure,
    Tensor,
)


def layers(model: Model) -> list[Layer]:
    """The model and every layer in it; goes when `_flatten_layers` is public."""
    return list(model._flatten_layers())


def graph_of(model: Model) -> Model | None:
    """The functional model whose graph a model runs, itself maybe; or None."""
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    # A subclass may have a `call` of its own.
    owner = next((c for c in type(graph).__mro__ if "call" in vars(c)), object)
    return graph if "_standardize_inputs" in vars(owner) else None


def output_specs(model: Model, group_size: int) -> Any:
    """Symbolic outputs of a model on `group_size` examples, in their structure.

    Read off its graph, for a functional model whose layers have made their variables.
    The structure is that which a call returns: a list of one output is that output.
    None for any other model, and where a size is unknown. Goes when Keras says which
    outputs a call returns.
    """
    graph = graph_of(model)
    if graph is None:
        return None
    inner = [layer for layer in layers(model) if layer is not model]
    if not all(layer.built and _has_variables(layer) for layer in inner):
        return None
    # With the shapes that the model was made for nothing is run.
    specs = graph.compute_output_spec(graph.input)
    shapes = [tuple(t.shape) for t in keras.tree.flatten(specs)]
    if any(shape[:1] != (None,) or None in shape[1:] for shape in shapes):
        return None
    found = keras.tree.map_structure(
        lambda t: keras.KerasTensor((group_size, *t.shape[1:]), t.dtype), specs
    )
    return found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found


def _has_variables(layer: Layer) -> bool:
    # A layer may make variables in `call`. Keras's own do not, and any other was run
    # when its model was made, unless it computes the shape of its outputs by itself.
    kind, stock = type(layer), keras.Layer
    is_run = (
        kind.compute_output_shape is stock.compute_output_shape
        and kind.compute_output_spec is stock.compute_output_spec
    )
    return is_run or kind.__module__.partition(".")[0] == "keras"


def bound_operation(model: Model, batch_size: int, group_size: int) -> str | None:
    """The operation of a model that only takes the batch size the model was built for.

    The graph of a functional model is run on shapes alone, for `group_size` examples.
    Such an operation fails on them, or makes `batch_size` examples of them. None if
    there is none, and for models with a `call` of their own. Goes when Keras has a
    public way to visit the operations of a graph with their shapes.

    Args:
        model: the model.
        batch_size: that it was built for.
        group_size: examples to try instead.
    """
    graph = graph_of(model)
    if graph is None:
        return None
    failed: list[str] = []
    enlarged: list[str] = []

    def watched(operation: Layer) -> Callable[..., Structure]:
        def output_spec(*args: object, **kwargs: Any) -> Structure:
            try:
                spec = operation.compute_output_spec(*args, **kwargs)
            except Exception:  # of any class: the operation may be a user's
                failed.append(operation.name)
                raise
            if batch_size in _sizes(spec) - _sizes((args, kwargs)):
                enlarged.append(operation.name)
            return spec

        return output_spec

    group = [
        keras.KerasTensor((group_size, *t.shape[1:]), t.dtype, sparse=t.sparse)
        for t in model.inputs
    ]
    with tf.init_scope():
        try:
            outputs = graph._run_through_graph(group, operation_fn=watched)
        except Exception:
            return failed[0] if failed else None
    # A layer may move the batch axis and move it back, so the outputs decide.
    for built, now in zip(model.outputs, keras.tree.flatten(outputs), strict=True):
        if _sizes(built) == {batch_size} and _sizes(now) != {group_size}:
            return enlarged[0] if enlarged else built.name
    return None


def _sizes(structure: Structure) -> set[int | None]:
    # The first axes of its tensors.
    leaves = keras.tree.flatten(structure)
    return {t.shape[0] for t in leaves if isinstance(t, keras.KerasTensor) and t.shape}


def build(model: Model, optimizer: Optimizer, specs: Parts) -> None:
    """Creates the variables of model, loss, metrics and optimizer that are missing.

    They are made as Keras's own first step makes them: by a trace of the model in
    training, of its loss and of its metrics, which runs nothing. Goes when Keras has a
    public name for that.

    Args:
        model: the model in training.
        optimizer: its optimizer.
        specs: `tf.TypeSpec`s of x, y and sample_weight of one group of examples.
    """
    # The class of variables that `tf.Variable` makes eagerly.
    plain = type(keras_optimizer.raw_iterations(optimizer).value)

    def creator(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
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


def _build_model(model: Model, specs: Parts) -> None:
    parts = model._compile_loss, model._compile_metrics
    missing = [part is not None and not part.built for part in parts]
    needs_run = not all(layer.built for layer in layers(model))
    if not (any(missing) or needs_run):
        return
    y_pred: Any = None
    leaves = [leaf for leaf in keras.tree.flatten(specs[0]) if leaf is not None]
    # A run of the model takes half as long as to trace the loop. It is spared where the
    # graph tells the outputs; not where layers add losses when they are called.
    if leaves and not needs_run and not model.losses:
        y_pred = output_specs(model, leaves[0].shape[0])
    backend.compute_output_spec(
        lambda y_pred: _call_all(model, specs, y_pred, *missing), y_pred
    )


def trace_once(model: Model, specs: Parts) -> None:
    """Lets model, loss and metrics create variables at a first call, and runs nothing.

    For what `build` cannot do, which opens a stateless scope: variables made from a
    value, as a loss may do when it is first called. Arguments are those of `build`.
    """
    with tf.init_scope():
        step = tf.function(lambda: _call_all(model, specs), autograph=False)
        step.get_concrete_function()


def _call_all(
    model: Model,
    specs: Parts,
    y_pred: Structure = None,
    has_loss: bool = True,
    has_metrics: bool = True,
) -> None:
    x, y, sample_weight = (_placeholders(part) for part in specs)
    if y_pred is None:
        y_pred = forward(model, x)
    if has_loss:
        compute_loss(model, x, y, y_pred, sample_weight)
    if has_metrics:
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _placeholders(specs: Structure) -> Structure:
    # Tensors of the graph in the making. A sparse or ragged one is several.
    def placeholder(spec: tf.TypeSpec[Any] | None) -> Tensor | None:
        if spec is None:
            return None
        parts = tf.nest.flatten(spec, expand_composites=True)
        made = [tf.compat.v1.placeholder(part.dtype, part.shape) for part in parts]
        return tf.nest.pack_sequence_as(spec, made, expand_composites=True)

    return keras.tree.map_structure(placeholder, specs)


def refused_variable(error: BaseException) -> bool:
    """Whether Keras refused to make a variable because a stateless scope was open.

    Goes when Keras has a class for that error: the text is the only sign.
    """
    return "stateless scope" in str(error)


def build_from_first_part(
    model: Model, iterator: Iterable[tuple[object, object, Iterator[Structure]]]
) -> None:
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


def forward(model: Model, x: Structure) -> Structure:
    """Calls the model for training, as Keras's `train_step` does."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def compute_loss(
    model: Model,
    x: Structure,
    y: Structure,
    y_pred: Structure,
    sample_weight: Structure,
) -> Any:
    """`compute_loss`, also where an override has no `training` argument.

    Goes when Keras drops support for such overrides (`_compute_loss`, since 3.3).
    """
    given = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
    return model._compute_loss(**given, training=True)


def compiled_loss(model: Model, y: Structure, y_pred: Structure) -> Any:
    """The loss of `compile` without any `sample_weight`.

    None without such a loss, or where the model computes its loss by itself. Updates
    the metrics that Keras keeps of several losses. Goes when `compute_loss` can leave
    out what a model adds to it.
    """
    if type(model).compute_loss is not keras.Model.compute_loss:
        return None
    compiled = model._compile_loss
    return None if compiled is None else compiled(y, y_pred, None)


def loss_tracker(model: Model) -> Any:
    """The metric behind the logged `loss`, or None before `compile`."""
    return model._loss_tracker


def compiled_losses(model: Model) -> list[keras.losses.Loss]:
    """The `keras.Loss` objects that `compile` was given or made."""
    compiled = model._compile_loss
    flat = getattr(compiled, "_flat_losses", None) or []
    return [entry.loss for entry in flat]


def takes_class_numbers(loss: object) -> bool:
    """Whether a compiled loss is sparse categorical cross-entropy, whose y are classes.

    Goes when `keras.Loss` says which labels it takes.
    """
    return getattr(loss, "fn", None) is keras.losses.sparse_categorical_crossentropy


def ignored_class(loss: Any) -> int | None:
    """The `ignore_class` of a compiled sparse categorical cross-entropy, or None.

    Keras 3.16 has no attribute of that name. Goes when all versions have one.
    """
    return getattr(loss, "_fn_kwargs", {}).get("ignore_class")


def operations(model: Model) -> list[Layer]:
    """The model, every layer in it, and operations in the graphs of functional ones.

    Goes when `_flatten_layers` is public and lists operations.
    """
    found = layers(model)
    for layer in tuple(found):
        graph = graph_of(layer) if isinstance(layer, keras.Model) else None
        found += [] if graph is None else graph.operations
    return list({id(x): x for x in found}.values())


def has_mask(tensor: Tensor) -> bool:
    """Whether Keras keeps a mask with a tensor; goes when it can be asked."""
    return getattr(tensor, "_keras_mask", None) is not None


_calls_lock = threading.RLock()


@contextlib.contextmanager
def calls_through(
    operations: Iterable[Layer],
    through: Callable[[Layer, Callable[..., Any], Any, Any], Any],
) -> Iterator[None]:
    """While it is open, this thread makes the calls of some layers by a function.

    Keras calls the attribute `call` of the object, which is one of the class. Goes when
    Keras has hooks around calls.

    Args:
        operations: the layers and operations.
        through: gets the layer, its own `call`, and positional and named arguments.
    """
    thread = threading.get_ident()

    def answer(operation: Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def called(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return call(*args, **kwargs)
            return through(operation, call, args, kwargs)

        return called

    with _calls_lock:
        attributes_of: list[tuple[Any, Layer]] = [(vars(x), x) for x in operations]
        before = [(found, found.get("call")) for found, _ in attributes_of]
        try:
            for attributes, x in attributes_of:
                attributes["call"] = answer(x, x.call)
            yield
        finally:
            for attributes, own in before:
                attributes.pop("call", None)
                if own is not None:
                    attributes["call"] = own
