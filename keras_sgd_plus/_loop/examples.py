"""Batches: count their examples, gather some, pad them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private.types import Operation, Parts, Structure, Tensor

Leaf = tf.Tensor | tf.SparseTensor | tf.RaggedTensor  # with a batch axis


def unpack(data: Structure) -> Parts:
    """Splits the data of a train step into x, y and sample_weight, as tensors.

    A single weight for the whole batch becomes one per example, as Keras broadcasts it.
    """
    parts: Any = keras.utils.unpack_x_y_sample_weight(data)
    x, y, sample_weight = (keras.tree.map_structure(_as_tensor, p) for p in parts)
    first = next(iter(flat(x)), None)
    if first is None or not first.shape.rank:
        return x, y, sample_weight
    num_examples = count(first)

    def per_example(weight: Tensor | None) -> Tensor | None:
        if weight is None or weight.shape.rank != 0 or weight.dtype == tf.string:
            return weight
        return tf.broadcast_to(weight, [num_examples])

    return x, y, keras.tree.map_structure(per_example, sample_weight)


def named_leaves(batch: Parts) -> list[tuple[str, Any]]:
    """The tensors of a batch with names for messages, None entries left out."""
    named = []
    for name, part in zip(("x", "y", "sample_weight"), batch, strict=True):
        leaves = [leaf for leaf in keras.tree.flatten(part) if leaf is not None]
        several = len(leaves) > 1
        named += [
            (f"{name}[{i}]" if several else name, leaf) for i, leaf in enumerate(leaves)
        ]
    return named


def flat(batch: Structure) -> list[Any]:
    """The tensors of a batch in a fixed order, None entries left out."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def pack(batch: Structure, leaves: list[Leaf]) -> Any:
    """The inverse of `flat`: other tensors in the structure of `batch`."""
    following = iter(leaves)
    return keras.tree.map_structure(
        lambda old: None if old is None else next(following), batch
    )


def waiting_for(checks: list[Operation], batch: Parts) -> Any:
    """The same batch, whose tensors exist only once `checks` have passed."""

    def wait(leaf: Leaf | None) -> Leaf | None:
        if leaf is None:
            return None
        return tf.nest.map_structure(tf.identity, leaf, expand_composites=True)

    if not checks:
        return batch
    with tf.control_dependencies(checks):
        return tuple(keras.tree.map_structure(wait, part) for part in batch)


def specs(batch: Parts, num_examples: int) -> Any:
    """The `tf.TypeSpec`s of a batch of `num_examples`; None entries stay."""

    def spec(leaf: Leaf | None) -> tf.TypeSpec[Any] | None:
        if leaf is None:
            return None
        shape = [num_examples, *leaf.shape[1:]]
        if isinstance(leaf, tf.SparseTensor):
            return tf.SparseTensorSpec(shape, leaf.dtype)
        if isinstance(leaf, tf.RaggedTensor):
            splits = leaf.row_splits.dtype
            return tf.RaggedTensorSpec(shape, leaf.dtype, leaf.ragged_rank, splits)
        return tf.TensorSpec(shape, leaf.dtype)

    return tuple(keras.tree.map_structure(spec, part) for part in batch)


def is_dense(leaf: Leaf) -> bool:
    """Whether XLA can take the tensor: not sparse, ragged or made of strings."""
    return isinstance(leaf, tf.Tensor) and leaf.dtype not in (tf.string, tf.variant)


def static_count(leaf: Leaf) -> int | None:
    """The number of examples where it is known while tracing, else None."""
    return leaf.shape[0] if leaf.shape.rank else None


def count(leaf: Leaf) -> int | Tensor:
    """The number of examples: an int where known while tracing, else () int32."""
    static = static_count(leaf)
    if static is not None:
        return static
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.int32)
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.int32)
    return tf.shape(leaf)[0]


def group_positions(i: Tensor, group_size: int, order: Tensor | None) -> Tensor:
    """(k,) int32: where the examples of group number i are in the batch."""
    if group_size == 1:  # fewer operations, which are traced and compiled
        positions = tf.reshape(i, (1,))
    else:
        positions = i * group_size + tf.range(group_size, dtype=tf.int32)
    return positions if order is None else tf.gather(order, positions)


def gather_examples(leaf: Leaf, positions: Tensor) -> Any:
    """The examples at `positions`, (k,) int32, with their batch axis.

    `tf.gather` and not `tf.slice`: XLA turns it into a dynamic slice, while a slice
    with a moving start makes the whole loop slow.
    """
    if not isinstance(leaf, tf.SparseTensor):
        return tf.gather(leaf, positions)
    # Sparse rows have no gather: one slice per position (k is static here).
    rank = leaf.shape.rank
    size = tf.concat([[1], leaf.dense_shape[1:]], 0)
    rows = []
    for position in tf.unstack(tf.cast(positions, tf.int64)):
        start = tf.concat([[position], tf.zeros(rank - 1, tf.int64)], 0)
        rows.append(tf.sparse.slice(leaf, start, size))
    taken = rows[0] if len(rows) == 1 else tf.sparse.concat(0, rows)
    return tf.SparseTensor(
        taken.indices,
        taken.values,
        tf.ensure_shape(taken.dense_shape, (rank,)),
    )


def pad(leaf: tf.Tensor, size: int | Tensor) -> tf.Tensor:
    """Appends zeros until the batch axis has `size` entries; free if it has them."""
    missing = [[0, size - tf.shape(leaf)[0]]]
    return tf.pad(leaf, missing + [[0, 0]] * (leaf.shape.rank - 1))


def _as_tensor(leaf: Any) -> Leaf | None:
    if leaf is None or isinstance(leaf, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor)):
        return leaf
    return tf.convert_to_tensor(leaf)
