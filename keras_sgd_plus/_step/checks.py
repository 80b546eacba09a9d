"""Checks of a batch and of the model that is to train on it.

Messages say what was expected, what was received and how to fix it, in that order.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._loop import examples
from keras_sgd_plus._private.types import Model, Structure, Tensor


def rectangular(data: Structure) -> None:
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


def batched(model: Model, data: Structure) -> None:
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


def _is_single_example(leaf: Any, tensor: Any) -> bool:
    # Whether a leaf has the shape of an input without its batch axis.
    given: Any = getattr(leaf, "shape", None)
    shape, declared = tf.TensorShape(given), tensor.shape
    if shape.rank is None or shape.rank != len(declared) - 1:
        return False
    if len(declared) > 1 and declared[-1] == 1:
        # Keras appends the axis of length 1 to batches that lack it.
        if shape[1:].is_compatible_with(declared[1:-1]):
            return False
    return shape.is_compatible_with(declared[1:])


def kinds(model: Model, data: Structure) -> None:
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
            raise ValueError(
                "`y` must be given where compile() was given a loss. Received: y=None. "
                "Give every example its target, or compile without a loss and use "
                "add_loss."
            )
        _refuse_text("y", y)
        _refuse_text("sample_weight", sample_weight)


def batch(named_leaves: Sequence[tuple[str, Any]]) -> tuple[Any, list[Any]]:
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


def described(data: Structure, group_size: int) -> str:
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


def _casts(loss: Any) -> bool:
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


def _unbatched(named_leaves: Sequence[tuple[str, Any]]) -> str:
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


def _lengths(one: tuple[str, Any], other: tuple[str, Any]) -> list[Any]:
    # In pieces: the running graph puts in numbers that tracing does not know.
    return [
        "x, y and sample_weight must have the same number of examples in a batch. "
        f"Received: {one[0]} with ",
        one[1],
        f" and {other[0]} with ",
        other[1],
        ". Give every example its target (and weight), or drop what has none.",
    ]


def _size(leaf: Any) -> Any:
    # The number of examples: an int where it is known by now, else () int32.
    size = examples.count(leaf)
    return int(size) if tf.executing_eagerly() else size


def _asserted(condition: Any, pieces: Sequence[Any]) -> Any:
    # TensorFlow shows each piece in brackets, so they are stripped.
    texts = [p.strip() if isinstance(p, str) else p for p in pieces]
    return tf.debugging.Assert(condition, texts)
