"""Checks of a batch, and of the model that is to train on it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.examples import Leaf
from keras_sgd_plus._loop.scope import Carry
from keras_sgd_plus._private import keras_model
from keras_sgd_plus._private.types import (
    Layer,
    Model,
    Operation,
    Structure,
    Tensor,
)


def check_rectangular(data: Structure) -> None:
    """Raises ValueError for an object array: rows of several lengths, say."""
    for leaf in keras.tree.flatten(data):
        if getattr(leaf, "dtype", None) != np.dtype("O"):
            continue
        try:
            tf.convert_to_tensor(leaf)  # strings are objects too, and fine
        except (TypeError, ValueError):
            raise ValueError(
                "The examples of a batch must be numbers of one shape. Received: an "
                f"array of Python objects, shape {leaf.shape}. Convert numbers with "
                '.astype("float32"). Pad the examples to one length, or hand them over '
                "as a tf.RaggedTensor."
            ) from None


def check_batched(model: Model, data: Structure) -> None:
    """Raises ValueError for single examples, where the shapes of the inputs tell.

    Not checked: models whose inputs are not declared.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    inputs = getattr(model, "inputs", None) or []
    if len(leaves) == len(inputs) and leaves:
        if all(map(_is_single_example, leaves, inputs)):
            named = examples.named_leaves((x, y, sample_weight))
            raise ValueError(_unbatched(named))


def _is_single_example(leaf: Tensor, tensor: Any) -> bool:
    # Whether a leaf has the shape of an input without its batch axis.
    given: Any = getattr(leaf, "shape", None)
    shape: Any  # whose rank may be None
    shape, declared = tf.TensorShape(given), tensor.shape
    if shape.rank is None or shape.rank != len(declared) - 1:
        return False
    if len(declared) > 1 and declared[-1] == 1:
        # Keras appends the axis of length 1 to batches that lack it.
        if shape[1:].is_compatible_with(declared[1:-1]):
            return False
    return shape.is_compatible_with(declared[1:])


def check_kinds(model: Model, data: Structure) -> None:
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
        if y is None and all(axes):  # else `check_batch` says something of x
            raise ValueError(
                "`y` must be given where compile() was given a loss. Received: y=None. "
                "Give every example its target, or compile without a loss and use "
                "add_loss."
            )
        _refuse_text("y", y)
        _refuse_text("sample_weight", sample_weight)


def check_batch(named_leaves: Sequence[tuple[str, Leaf]]) -> tuple[Any, list[Any]]:
    """The number of examples, an int or () int32, and the assertions it rests on.

    A batch may be empty: pipelines that filter rows in batches make such.

    Tracing raises ValueError for sizes that it knows; the running graph asserts the
    others (`tf.errors.InvalidArgumentError`). The caller makes the batch wait for it.
    """
    if not named_leaves:
        raise ValueError(
            "SGDPlus needs a batch with at least one tensor. Received: x=None, y=None. "
            "Pass x as arrays or tensors of shape (num_examples, ...)."
        )
    for name, leaf in named_leaves:
        if leaf.shape.rank == 0:
            raise ValueError(_unbatched(named_leaves))
        if leaf.shape.rank is None:
            raise ValueError(_unknown_axes(name))
    counts = [(name, _size(leaf)) for name, leaf in named_leaves]
    is_known = [isinstance(size, int) for _, size in counts]
    first = is_known.index(True) if any(is_known) else 0
    name, num_examples = counts[first]  # all others must have this length
    checks = []
    for i, (_, size) in enumerate(counts):
        pieces = _lengths(*(counts[j] for j in sorted((first, i))))
        if not is_known[i] and i != first:
            checks.append(_asserted(tf.equal(size, num_examples), pieces))
        elif is_known[i] and size != num_examples:
            raise ValueError("".join(map(str, pieces)))
    return num_examples, checks


def batch_in_words(data: Structure, group_size: int) -> str:
    """A batch in words: a note to errors, which show only what the model received."""

    def shown(leaf: Tensor) -> str:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        return f"{getattr(leaf, 'shape', '')} {getattr(dtype, 'name', dtype)}".strip()

    parts = keras.utils.unpack_x_y_sample_weight(data)
    named = zip(("x", "y", "sample_weight"), parts, strict=True)
    received = [
        f"{name}: {keras.tree.map_structure(shown, part)}"
        for name, part in named
        if part is not None
    ]
    return (
        f"The batch that SGDPlus received: {', '.join(received)}. It feeds the model "
        f"{group_size} example(s) at a time, with a batch axis of that size."
    )


def _casts(loss: object) -> bool:
    if isinstance(loss, keras.Loss):
        return type(loss).__call__ is keras.Loss.__call__
    return isinstance(loss, str) or inspect.isfunction(loss)


def _refuse_text(name: str, part: Structure) -> None:
    for leaf in keras.tree.flatten(part):
        dtype = getattr(leaf, "dtype", None)
        if dtype is tf.string or getattr(dtype, "kind", "") in ("S", "U"):
            raise TypeError(
                f"`{name}` must be numbers. Received: {name} of strings, shape "
                f"{leaf.shape}. Map them to numbers first, with "
                "keras.layers.StringLookup or np.unique(..., return_inverse=True), say."
            )


def _unbatched(named_leaves: Sequence[tuple[str, Leaf]]) -> str:
    shapes = [
        f"{name} of shape {getattr(leaf, 'shape', ())}" for name, leaf in named_leaves
    ]
    return (
        "The data must come in batches; was .batch(n) forgotten? Expected: shapes "
        f"(num_examples, ...). Received: {', '.join(shapes)}. Write "
        "dataset.batch(1024) for a tf.data.Dataset, let a generator or PyDataset give "
        "arrays with a first axis, and write x[None] for a single example."
    )


def _unknown_axes(name: str) -> str:
    return (
        f"`{name}` must have a known number of axes, shape (num_examples, ...). "
        f"Received: {name} of unknown shape. Write x[None] for a single example, and "
        "use set_shape in a tf.data pipeline that loses the shape. If batches before "
        "had another number of axes, compile the model anew."
    )


def _lengths(
    one: tuple[str, int | Tensor], other: tuple[str, int | Tensor]
) -> list[str | int | Tensor]:
    # In pieces: the running graph puts in numbers that tracing does not know.
    return [
        "x, y and sample_weight must have the same number of examples in a batch. "
        f"Received: {one[0]} with ",
        one[1],
        f" and {other[0]} with ",
        other[1],
        ". Give every example its target (and weight), or drop what has none.",
    ]


def _size(leaf: Leaf) -> int | Tensor:
    # The number of examples: an int where it is known by now, else () int32.
    size = examples.count(leaf)
    return int(size) if tf.executing_eagerly() else size


def _asserted(condition: Tensor, pieces: Sequence[str | int | Tensor]) -> Operation:
    # TensorFlow shows each piece in brackets, so they are stripped.
    texts = [p.strip() if isinstance(p, str) else p for p in pieces]
    return tf.debugging.Assert(condition, texts)


_INSTEAD = (
    "Replace it with LayerNormalization or GroupNormalization, freeze it with "
    "`layer.trainable = False`, or give it groups with "
    "SGDPlus(..., examples_per_update=16)."
)


def check_batch_size(model: Model, group_size: int) -> None:
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
        name = keras_model.bound_operation(model, others[0], group_size)
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


def doubts_of_losses(
    model: Model, sample_weight: Any, group_size: int
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


def doubts_of_normalising(
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
