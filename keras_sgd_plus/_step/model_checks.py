"""Checks of a model: its batch size, its replicas, layers that need more examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import keras

from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import Carry
from keras_sgd_plus._private import keras_graph, keras_model, keras_optimizer
from keras_sgd_plus._private.types import Layer, Model, Optimizer, Tensor

_INSTEAD = (
    "Replace it with LayerNormalization or GroupNormalization, freeze it with "
    "`layer.trainable = False`, or give it groups with "
    "SGDPlus(..., examples_per_update=16)."
)


def replicas(model: Model, optimizer: Optimizer, num_replicas: int) -> None:
    """Raises NotImplementedError for settings that several replicas cannot share."""
    steps = optimizer.gradient_accumulation_steps
    if steps:
        raise NotImplementedError(
            "gradient_accumulation_steps must be None with several replicas, whose "
            f"average would cut its windows. Received: {num_replicas} replicas and "
            f"gradient_accumulation_steps={steps}. Use examples_per_update={steps}, "
            "which averages the gradients of as many examples inside a batch."
        )
    variables = [*model.variables, *model.metrics_variables, *optimizer.variables]
    alone = [
        v.path for v in variables if not strategy.has_copies(keras_optimizer.native(v))
    ]
    if alone:
        raise ValueError(
            "Model, compile() and metrics must be made inside strategy.scope(). "
            f"Received: one {alone[0]!r} for all {num_replicas} replicas. Make them "
            "inside it."
        )
    calls, received = model.steps_per_execution, []
    received += ["jit_compile=True"] if model.jit_compile else []
    received += [f"steps_per_execution={calls}"] if calls > 1 else []
    if received:  # Keras fails with these whatever the optimizer
        raise NotImplementedError(
            "The steps of several replicas must be neither one XLA computation nor one "
            f"loop. Received: {num_replicas} replicas and compile("
            f"{', '.join(received)}). Leave that out: SGDPlus compiles the loop over "
            "examples itself."
        )


def batch_size(model: Model, group_size: int) -> None:
    """Raises ValueError where a model can only take batches of another size.

    A model that was built for a batch size takes others as well, unless a layer keeps
    a state per example of a batch, or an operation has the size built in.
    """
    sizes = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or []]
    others = [size for size in sizes if size not in (None, group_size)]
    problems = []
    for layer in keras_model.layers(model):
        if not getattr(layer, "stateful", False) or layer is model:
            continue
        kept = [size for size in _state_sizes(layer) if size != group_size] or others
        if kept:
            text = f"layer {layer.name!r} (stateful) with batch size {kept[0]}"
            problems.append(text)
    if others and not problems:
        name = keras_graph.bound_operation(model, others[0], group_size)
        if name is not None:
            problems.append(f"operation {name!r} with batch size {others[0]}")
    if problems:
        raise ValueError(
            f"SGDPlus feeds the model {group_size} example(s) at a time, so the model "
            f"must accept that batch size. Received: {', '.join(problems)}. Build it "
            f"with batch_size={group_size} (or None), or set examples_per_update to "
            "its batch size."
        )


def _state_sizes(layer: Layer) -> list[int]:
    # A state is (batch size, ...); None before the layer is built.
    if not isinstance(layer, keras.layers.RNN):
        return []
    states = keras.tree.flatten(getattr(layer, "states", None))
    return [state.shape[0] for state in states if state is not None]


def doubts(
    model: Model, sample_weight: Tensor, group_size: int
) -> list[tuple[str, str]]:
    """Warnings, as (topic, text), of losses that need several examples."""
    if group_size > 1:
        return []
    found = []
    weightless = [
        loss.name
        for loss in keras_model.compiled_losses(model)
        if getattr(loss, "reduction", None) == "mean_with_sample_weight"
    ]
    if weightless and sample_weight is not None:
        text = (
            'reduction="mean_with_sample_weight" divides the loss of a single example '
            "by its own weight, so sample_weight has no effect on "
            f'{_names(weightless)}. Use reduction="sum_over_batch_size" (the default).'
        )
        found.append(("reduction", text))
    return found


def normalising(
    model: Model, carry: Carry, changed: Collection[int]
) -> list[tuple[str, str]]:
    """Warnings, as (topic, text), of layers that normalise each example by itself.

    A `BatchNormalization` that does so writes its moving averages. One that is frozen,
    or called with `training=False`, writes nothing.

    Args:
        model: which was walked, one example per update.
        carry: its variables.
        changed: positions in the carry of those that the walk writes.
    """
    written = {id(carry.variables[i]) for i in changed}
    layers = [
        layer
        for layer in keras_model.layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and id(layer.moving_mean) in written
    ]
    lonely = [layer.name for layer in layers if _sees_one_value(layer)]
    spatial = [layer.name for layer in layers if not _sees_one_value(layer)]
    found = []
    if lonely:
        text = (
            f"SGDPlus feeds the model one example at a time, so {_names(lonely)} "
            "(BatchNormalization without spatial axes) would normalise each example by "
            f"itself and output a constant. {_INSTEAD}"
        )
        found.append(("batch normalization", text))
    if spatial:
        text = (
            f"SGDPlus feeds the model one example at a time, so {_names(spatial)} "
            "(BatchNormalization) normalises each example by its own mean and variance "
            "in training, and by moving averages in evaluate and predict: evaluate may "
            f"be far worse than the log. {_INSTEAD}"
        )
        found.append(("spatial batch normalization", text))
    return found


def _sees_one_value(layer: Layer) -> bool:
    return getattr(layer.input_spec, "ndim", None) == 2


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
