"""Every check of arguments, models and batches.

Messages say what was expected, what was received and how to fix it, in that order.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _examples, _keras, _messages, _strategy


def backend() -> None:
    """Raises RuntimeError on another Keras backend than TensorFlow."""
    name = keras.backend.backend()
    if name != "tensorflow":
        raise RuntimeError(_messages.other_backend(name))


def positive_int(name: str, value: Any) -> None:
    """Raises unless an int >= 1."""
    text = f"`{name}` must be an int >= 1. Received: {name}={value!r}. Use 1 or more."
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(text)
    if value < 1:
        raise ValueError(text)


def directory(value: Any) -> None:
    """Raises unless it names a directory."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError(
            "`directory` must be a str or a path. Received: "
            f"directory={value!r}. Name one for this run alone."
        )


def same_length(arrays: Sequence[Any]) -> int:
    """The number of examples of arrays, which must agree."""
    lengths = {len(a) if np.ndim(a) else 0 for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "x, y and sample_weight must have the same number of examples, one or "
            f"more. Received: {[np.shape(a) for a in arrays]}. Give every example its "
            "target (and weight)."
        )
    return lengths.pop()


def can_resume(optimizer: Any) -> None:
    """Raises TypeError for an optimizer that is no SGDPlus."""
    if not hasattr(optimizer, "loop_settings"):
        raise TypeError(
            "ExactResume must be used with an SGDPlus. Received: "
            f"{type(optimizer).__name__}. Compile the model with SGDPlus(...), or with "
            "examples_per_update=None for one update per batch."
        )


def same_saves(numbers: Sequence[int]) -> None:
    """Raises ValueError where workers found different last saves in a directory."""
    if len(set(numbers)) > 1:
        raise ValueError(
            "`directory` must be one that all workers see. Received: workers whose "
            f"last saves there are {list(numbers)}. Use a folder that they share."
        )


def replayable(fit: _keras.Fit) -> None:
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
    if _keras.drawn_anew(fit.dataset) and not fit.steps_per_epoch:
        raise ValueError(
            "ExactResume must see the same batches again after a restart. Received: a "
            "tf.data.Dataset whose shuffle() is drawn anew. Use shuffle(..., seed=..., "
            "reshuffle_each_iteration=False), or repeat() with steps_per_epoch."
        )


def replicas(model: Any, optimizer: Any, num_replicas: int) -> None:
    """Raises NotImplementedError for what several replicas cannot do together."""
    steps = optimizer.gradient_accumulation_steps
    if steps:
        raise NotImplementedError(
            "gradient_accumulation_steps must be None with several replicas, whose "
            f"average would cut its windows. Received: {num_replicas} replicas and "
            f"gradient_accumulation_steps={steps}. Use examples_per_update={steps}, "
            "which averages the gradients of as many examples inside a batch."
        )
    variables = [*model.variables, *model.metrics_variables, *optimizer.variables]
    alone = [v.path for v in variables if not _strategy.has_copies(_keras.native(v))]
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


def rectangular(data: Any) -> None:
    """Raises ValueError for an object array: rows of several lengths, say."""
    for leaf in keras.tree.flatten(data):
        if getattr(leaf, "dtype", None) != np.dtype("O"):
            continue
        try:
            tf.convert_to_tensor(leaf)  # strings are objects too, and fine
        except (TypeError, ValueError):
            raise ValueError(_messages.objects(leaf.shape)) from None


def kinds(model: Any, data: Any) -> None:
    """Raises for text where Keras would cast it to numbers, and for a loss without y.

    TypeError and ValueError. Not checked: an input that is not declared, a model or
    loss that does something else with y.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    inputs = getattr(model, "inputs", None)
    if inputs and all(tensor.dtype != "string" for tensor in inputs):
        _refuse_text("x", x)
    losses = keras.tree.flatten(getattr(model, "loss", None))
    stock = getattr(type(model), "compute_loss", None) is keras.Model.compute_loss
    if stock and losses and all(_casts(loss) for loss in losses):
        axes = [getattr(leaf, "shape", ()) != () for leaf in keras.tree.flatten(x)]
        if y is None and all(axes):  # else `batch` has something to say of x
            raise ValueError(_messages.no_target())
        _refuse_text("y", y)
        _refuse_text("sample_weight", sample_weight)


def _casts(loss: Any) -> bool:
    if isinstance(loss, keras.Loss):
        return type(loss).__call__ is keras.Loss.__call__
    return isinstance(loss, str) or inspect.isfunction(loss)


def _refuse_text(name: str, part: Any) -> None:
    for leaf in keras.tree.flatten(part):
        dtype = getattr(leaf, "dtype", None)
        if dtype is tf.string or getattr(dtype, "kind", "") in ("S", "U"):
            raise TypeError(_messages.text(name, leaf.shape))


def batch(
    named_leaves: Sequence[tuple[str, Any]], may_be_empty: bool
) -> tuple[Any, list[Any]]:
    """The number of examples, an int or () int32, and the assertions it rests on.

    What is known while tracing raises ValueError; the rest is asserted when the batch
    runs (`tf.errors.InvalidArgumentError`). The caller makes the batch wait for it.
    """
    if not named_leaves:
        raise ValueError(_messages.nothing())
    for name, leaf in named_leaves:
        if leaf.shape.rank is None or leaf.shape.rank == 0:
            raise ValueError(_messages.no_batch_axis(name, leaf.shape))
    counts = [(name, _examples.count(leaf)) for name, leaf in named_leaves]
    first_name, num_examples = counts[0]
    known = [(name, c) for name, c in counts if isinstance(c, int)]
    for name, size in known[1:]:
        if size != known[0][1]:
            raise ValueError(_messages.lengths(known[0], (name, size)))
    if known:
        num_examples = known[0][1]
        if num_examples == 0 and not may_be_empty:
            raise ValueError(_messages.empty(known[0][0], 0))
    checks = []
    for name, size in counts:
        if not isinstance(size, int) and size is not num_examples:
            text = _messages.lengths((first_name, "m"), (name, "n"))
            checks.append(tf.debugging.assert_equal(size, num_examples, message=text))
    if not isinstance(num_examples, int) and not may_be_empty:
        text = _messages.empty(first_name, 0)
        checks.append(tf.debugging.assert_positive(num_examples, message=text))
    return num_examples, [c for c in checks if c is not None]


def model(model: Any, group_size: int) -> None:
    """Raises ValueError where a model was built for a batch of another size."""
    problems = []
    for tensor in getattr(model, "inputs", None) or []:
        size = tensor.shape[0]
        if size is not None and size != group_size:
            problems.append(f"input {tensor.name!r} with batch size {size}")
            problems += [
                f"layer {layer.name!r} (stateful) with batch size {size}"
                for layer in _keras.layers(model)
                if getattr(layer, "stateful", False) and layer is not model
            ]
    if problems:
        raise ValueError(_messages.other_batch_size(group_size, problems))


def doubts(model: Any, sample_weight: Any, group_size: int) -> list[tuple[str, str]]:
    """Warnings, as (topic, text), of what means something else on one example."""
    if group_size > 1:
        return []
    found = []
    lonely = [layer.name for layer in _keras.layers(model) if _sees_one_value(layer)]
    if lonely:
        text = (
            f"SGDPlus feeds the model one example at a time, so {_names(lonely)} "
            "(BatchNormalization without spatial axes) would normalise each example by "
            "itself and output a constant. Replace it with LayerNormalization or "
            "GroupNormalization, or freeze it with `layer.trainable = False`."
        )
        found.append(("batch normalization", text))
    weightless = [
        loss.name
        for loss in _keras.compiled_losses(model)
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


def _sees_one_value(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.BatchNormalization) or not layer.trainable:
        return False
    return getattr(layer.input_spec, "ndim", None) == 2


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
