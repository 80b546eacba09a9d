"""Private names of Keras's functional models: what their graph says without a run.

Read in the sources of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import names
from keras_sgd_plus._private.types import Model


def graph_of(model: Model) -> Any:
    """The functional model whose graph a model runs, itself maybe; or None."""
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    runs = hasattr(graph, "_run_through_graph") and _runs_its_graph(graph)
    return graph if runs else None


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
    layers = [x for x in names.call(model, "_flatten_layers") if x is not model]
    if not all(layer.built and _has_variables(layer) for layer in layers):
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


def _has_variables(layer: Any) -> bool:
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
    run = names.attribute(graph, "_run_through_graph")
    failed: list[str] = []
    enlarged: list[str] = []

    def watched(operation: Any) -> Callable[..., Any]:
        def output_spec(*args: Any, **kwargs: Any) -> Any:
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
            outputs = keras.tree.flatten(run(group, operation_fn=watched))
        except Exception:
            return failed[0] if failed else None
    # A layer may move the batch axis and move it back, so the outputs decide.
    pairs = zip(model.outputs, outputs, strict=True)
    for built, now in pairs:
        if _sizes(built) == {batch_size} and _sizes(now) != {group_size}:
            return enlarged[0] if enlarged else built.name
    return None


def _runs_its_graph(graph: Any) -> bool:
    # A subclass may have a `call` of its own.
    owner = next((c for c in type(graph).__mro__ if "call" in vars(c)), None)
    return owner is not None and "_standardize_inputs" in vars(owner)


def _sizes(structure: Any) -> set[Any]:
    # The first axes of its tensors.
    leaves = keras.tree.flatten(structure)
    return {t.shape[0] for t in leaves if isinstance(t, keras.KerasTensor) and t.shape}
