"""The loop takes every source and type of data that `fit` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from tests.support.columns import CROSSENTROPY, RNG, N, columns, target
from tests.support.tiers import tiered_rows
from tests.support.twins import assert_engaged, assert_same, dense_data, train_pair


def _linear(inputs: int = 5, outputs: int = 2) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(outputs)])


def _tf_data(x: Any, y: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y))


class Batches(keras.utils.PyDataset):
    """Batches of 7 rows."""

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__()
        self.x, self.y = x, y

    def __len__(self) -> int:
        return -(-len(self.x) // 7)

    def __getitem__(self, index: int) -> Any:
        rows = slice(7 * index, 7 * index + 7)
        return self.x[rows], self.y[rows]


def _generator(x: Any, y: Any) -> Iterator[Any]:
    for start in range(0, len(x), 7):
        yield x[start : start + 7], y[start : start + 7]


def _rank_only(x: Any, y: Any) -> tf.data.Dataset:
    specs = [tf.TensorSpec((None, a.shape[1]), a.dtype) for a in (x, y)]
    return tf.data.Dataset.from_generator(
        lambda: _generator(x, y), output_signature=tuple(specs)
    )


SOURCES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "numpy": lambda x, y: {"x": x, "y": y, "batch_size": 7},
    "tf_tensor": lambda x, y: {"x": tf.constant(x), "y": tf.constant(y)},
    "tf_data": lambda x, y: {"x": _tf_data(x, y).batch(7)},
    "tf_data_static": lambda x, y: {"x": _tf_data(x, y).batch(5, drop_remainder=True)},
    "tf_data_rank_only": lambda x, y: {"x": _rank_only(x, y), "steps_per_epoch": 3},
    "tf_data_one_batch": lambda x, y: {"x": tf.data.Dataset.from_tensors((x, y))},
    "generator": lambda x, y: {"x": _generator(x, y), "steps_per_epoch": 3},
    "py_dataset": lambda x, y: {"x": Batches(x, y)},
    "batch_size_1": lambda x, y: {"x": x, "y": y, "batch_size": 1},
    "batch_size_above": lambda x, y: {"x": x, "y": y, "batch_size": 64},
}


# step/test_refusals.py has that warning.
WITHOUT_XLA = pytest.mark.filterwarnings("ignore:XLA cannot compile:UserWarning")


@pytest.mark.matrix
@pytest.mark.parametrize("source", tiered_rows(SOURCES))
def test_source(source: Any, engagements: list[str]) -> None:
    x, y = dense_data(N)
    mine = source(x, y)
    our_fit = {"y": None, "batch_size": 7 if "y" in mine else None, **mine}
    pair = train_pair(_linear, x, y, our_fit=our_fit)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def test_pandas(engagements: list[str]) -> None:
    x, y = dense_data(N, outputs=1)
    frame = pd.DataFrame(x, columns=list("abcde"))
    pair = train_pair(lambda: _linear(outputs=1), frame, pd.Series(y[:, 0]))
    assert_same(pair)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
def test_dataset_with_weights_over_two_epochs(engagements: list[str]) -> None:
    x, y = dense_data(N)
    weights = RNG(0).uniform(0.5, 2.0, N).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, weights))
    ours = {"x": data.batch(7), "y": None, "batch_size": None}
    theirs = {"x": data.batch(1), "y": None, "batch_size": None}
    pair = train_pair(_linear, x, y, our_fit=ours, their_fit=theirs, fit={"epochs": 2})
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)


def test_repeated_dataset_with_steps_per_epoch(engagements: list[str]) -> None:
    x, y = dense_data(N)
    data = _tf_data(x, y).repeat()
    ours = {"x": data.batch(6), "y": None, "batch_size": None, "steps_per_epoch": 4}
    theirs = {"x": data.batch(1), "y": None, "batch_size": None, "steps_per_epoch": 24}
    pair = train_pair(_linear, x, y, our_fit=ours, their_fit=theirs)
    assert_same(pair)
    assert_engaged(pair, engagements, 24)


def _classifier() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), layers.Dense(3, activation="softmax")])


def _labels() -> np.ndarray:
    return target(columns(1), 3).argmax(1)


LABELS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "int64": (CROSSENTROPY, lambda y: y),
    "uint8_column": (CROSSENTROPY, lambda y: y.astype("uint8")[:, None]),
    "one_hot": ("categorical_crossentropy", lambda y: np.eye(3, dtype="float32")[y]),
}


@pytest.mark.parametrize("loss, encode", tiered_rows(LABELS, "one_hot", unpack=True))
def test_labels(loss: str, encode: Any, engagements: list[str]) -> None:
    (x,) = columns(1)
    compile = {"loss": loss, "metrics": ["accuracy"]}
    pair = train_pair(_classifier, x, encode(_labels()), compile=compile)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
@pytest.mark.parametrize("as_declared", [True, False], ids=["declared", "cast"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool", "float16"])
def test_dtype(dtype: str, as_declared: bool, engagements: list[str]) -> None:
    """An input declared with the type of the data, and one that Keras casts."""

    def make() -> keras.Model:
        x = keras.Input((4,), dtype=dtype if as_declared else None)
        return keras.Model(x, layers.Dense(1)(layers.Rescaling(0.1)(x)))

    x = RNG(0).integers(0, 9, (N, 4))
    y = np.sin(x.sum(1, keepdims=True)).astype("float32")
    pair = train_pair(make, (x > 4 if dtype == "bool" else x).astype(dtype), y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
@WITHOUT_XLA
def test_strings(engagements: list[str]) -> None:
    words = ["red", "green", "blue", "black"]

    def make() -> keras.Model:
        x = keras.Input((2,), dtype="string")
        rows = layers.Embedding(5, 3)(layers.StringLookup(vocabulary=words)(x))
        return keras.Model(x, layers.Dense(1)(layers.Flatten()(rows)))

    ids = RNG(0).integers(0, 4, (N, 2))
    x = tf.constant(np.array(words)[ids])
    y = np.sin(ids.sum(1, keepdims=True)).astype("float32")
    pair = train_pair(make, x, y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)


def _fed_by(dataset: tf.data.Dataset) -> dict[str, Any]:
    ours = {"x": dataset.batch(7), "y": None, "batch_size": None}
    theirs = {"x": dataset.batch(1), "y": None, "batch_size": None}
    return {"our_fit": ours, "their_fit": theirs}


class BagOfWords(keras.Model):
    """Averages rows of a table over a ragged axis."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(1)

    def build(self, shape: Any) -> None:
        del shape
        self.table = self.add_weight(shape=(8, 3), initializer="random_normal")
        self.head.build((None, 3))

    def call(self, x: Any) -> Any:
        rows = tf.gather(tf.convert_to_tensor(self.table.value), x)
        return self.head(tf.reduce_mean(rows, axis=1))


@WITHOUT_XLA
def test_ragged(engagements: list[str]) -> None:
    lengths = RNG(0).integers(1, 5, N)
    ragged = tf.RaggedTensor.from_row_lengths(
        RNG(1).integers(0, 8, lengths.sum()), lengths
    )
    y = np.sin(lengths).astype("float32")[:, None]

    def make() -> keras.Model:
        model = BagOfWords()
        model.build((None, None))
        return model

    dataset = tf.data.Dataset.from_tensor_slices((ragged, y))
    pair = train_pair(make, None, **_fed_by(dataset))
    assert_same(pair)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
@WITHOUT_XLA
@pytest.mark.parametrize("source", ["tf_data", "tensor"])
def test_sparse(source: str, engagements: list[str]) -> None:
    dense = RNG(0).normal(size=(N, 6)).astype("float32")
    dense[RNG(1).random((N, 6)) < 0.6] = 0
    x, y = tf.sparse.from_dense(dense), np.sin(dense.sum(1, keepdims=True))

    def make() -> keras.Model:
        inputs = keras.Input((6,), sparse=True)
        return keras.Model(inputs, layers.Dense(1)(inputs))

    if source == "tensor":
        pair = train_pair(make, x, y)
    else:
        dataset = tf.data.Dataset.from_tensor_slices((x, y))
        pair = train_pair(make, None, **_fed_by(dataset))
    assert_same(pair)
    assert_engaged(pair, engagements, N)
