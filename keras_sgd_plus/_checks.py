"""Every check of arguments, models and batches.

Messages say what was expected, what was received and how to fix it, in that order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _examples, _keras

ORDERS = ("reshuffle", "given")
NONFINITE = ("propagate", "skip", "raise")


def backend() -> None:
    """Raises RuntimeError on another Keras backend than TensorFlow."""
    name = keras.backend.backend()
    if name != "tensorflow":
        raise RuntimeError(
            "SGDPlus needs the TensorFlow backend. Received: "
            f"keras.backend.backend()={name!r}. Set KERAS_BACKEND=tensorflow before "
            "importing keras."
        )


def examples_per_update(value: Any) -> None:
    """Raises unless None or an int >= 1."""
    if value is None:
        return
    fix = (
        "Use 1 for one update per example, k for one per k examples, None for one per "
        "batch as keras.optimizers.SGD."
    )
    expected = "`examples_per_update` must be an int >= 1 or None."
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{expected} Received: examples_per_update={value!r}. {fix}")
    if value < 1:
        raise ValueError(f"{expected} Received: examples_per_update={value!r}. {fix}")


def order(value: Any) -> None:
    """Raises unless one of the orders."""
    if value not in ORDERS:
        raise ValueError(
            f'`order` must be "reshuffle" or "given". Received: order={value!r}. Use '
            '"reshuffle" for a fresh random order of each batch, "given" to visit '
            "examples as they are handed over."
        )


def seed(value: Any) -> None:
    """Raises unless None or an int that fits in 63 bits."""
    expected = "`seed` must be None or an int from 0 to 2**63 - 1."
    fix = "Use seed=None to derive one from `keras.utils.set_random_seed`."
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{expected} Received: seed={value!r}. {fix}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{expected} Received: seed={value!r}. {fix}")


def nonfinite(value: Any) -> None:
    """Raises unless one of the ways to treat what is not finite."""
    if not isinstance(value, str) or value not in NONFINITE:
        raise ValueError(
            '`nonfinite` must be "propagate", "skip" or "raise". Received: '
            f'nonfinite={value!r}. Use "skip" to leave out examples whose loss or '
            'gradients are not finite, "raise" to stop at the first.'
        )


def jit_compile(value: Any) -> None:
    """Raises unless "auto", True or False."""
    if not (value is True or value is False or value == "auto"):
        raise ValueError(
            f'`jit_compile` must be "auto", True or False. Received: '
            f'jit_compile={value!r}. Use "auto" for XLA wherever the model can.'
        )


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


def strategy() -> None:
    """Raises NotImplementedError under several replicas of `tf.distribute`."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise NotImplementedError(
            "SGDPlus steps per example on one device. Received: a tf.distribute "
            f"strategy with {replicas} replicas. Use examples_per_update=None for one "
            "synchronous update per batch, or train outside the strategy's scope."
        )


def rectangular(data: Any) -> None:
    """Raises ValueError for an object array that holds rows of several lengths."""
    for leaf in keras.tree.flatten(data):
        if getattr(leaf, "dtype", None) != np.dtype("O"):
            continue
        try:
            tf.convert_to_tensor(leaf)  # strings are objects too, and fine
        except (TypeError, ValueError):
            raise ValueError(
                "The examples of a batch must have one shape. Received: an array of "
                f"Python objects, shape {leaf.shape}. Pad the examples to one length, "
                "or hand them over as a tf.RaggedTensor."
            ) from None


def batch(named_leaves: Sequence[tuple[str, Any]]) -> tuple[Any, list[Any]]:
    """The number of examples, an int or () int32, and the assertions it rests on.

    What is known while tracing raises ValueError; the rest is asserted when the batch
    runs (`tf.errors.InvalidArgumentError`). The caller makes the batch wait for it.
    """
    if not named_leaves:
        raise ValueError(
            "SGDPlus needs a batch with at least one tensor. Received: x=None, y=None. "
            "Pass x as arrays or tensors of shape (num_examples, ...)."
        )
    for name, leaf in named_leaves:
        if leaf.shape.rank is None or leaf.shape.rank == 0:
            raise ValueError(
                f"`{name}` must have a batch axis, shape (num_examples, ...). "
                f"Received: {name} of shape {leaf.shape}. Give a single example a "
                "first axis with x[None], and set_shape in a tf.data pipeline that "
                "loses it."
            )
    counts = [(name, _examples.count(leaf)) for name, leaf in named_leaves]
    first_name, num_examples = counts[0]
    known = [(name, c) for name, c in counts if isinstance(c, int)]
    for name, size in known[1:]:
        if size != known[0][1]:
            raise ValueError(_lengths(known[0], (name, size)))
    if known:
        num_examples = known[0][1]
        if num_examples == 0:
            raise ValueError(_empty(known[0][0], 0))
    checks = []
    for name, size in counts:
        if not isinstance(size, int) and size is not num_examples:
            text = _lengths((first_name, "m"), (name, "n"))
            checks.append(tf.debugging.assert_equal(size, num_examples, message=text))
    if not isinstance(num_examples, int):
        text = _empty(first_name, 0)
        checks.append(tf.debugging.assert_positive(num_examples, message=text))
    return num_examples, [c for c in checks if c is not None]


def _lengths(one: tuple[str, Any], other: tuple[str, Any]) -> str:
    return (
        "x, y and sample_weight must have the same number of examples in a batch. "
        f"Received: {one[0]} with {one[1]} and {other[0]} with {other[1]}. Give every "
        "example its target (and weight), or drop what has none."
    )


def _empty(name: str, size: int) -> str:
    return (
        f"A batch must have at least one example. Received: {name} with {size}. Drop "
        "empty batches, with dataset.filter for example."
    )


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
        raise ValueError(
            f"SGDPlus feeds the model {group_size} example(s) at a time, so the model "
            f"must accept that batch size. Received: {', '.join(problems)}. Build it "
            f"with batch_size={group_size} (or None), or set examples_per_update to "
            "its batch size."
        )


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
