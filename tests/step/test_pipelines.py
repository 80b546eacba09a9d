"""Batches as pipelines make them: some are empty, or have one weight for all rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExampleLog, SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import assert_engaged, assert_same, linear_model, train_pair

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")
# Which rows a filter lets pass, in batches of 4.
KEPT = {
    "first_empty": np.arange(24) >= 4,
    "last_empty": np.arange(24) < 20,
    "most_empty": np.isin(np.arange(24), [5, 16, 17]),
    "none_empty": np.arange(24) % 4 > 0,
}


def filtered(keep: np.ndarray) -> tf.data.Dataset:
    """Batches of 4 rows less those that do not pass."""
    data = tf.data.Dataset.from_tensor_slices((X, Y, keep)).batch(4)
    return data.map(lambda x, y, keep: (x[keep], y[keep]))


HOW: dict[str, dict[str, Any]] = {
    "xla": {"jit_compile": "auto"},
    "plain": {"jit_compile": False},
    "skip": {"nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}


@pytest.mark.parametrize("how", tiered_rows(HOW, "xla", "plain"))
@pytest.mark.parametrize("keep", tiered_rows(KEPT, "first_empty"))
def test_filtered(
    keep: np.ndarray, how: dict[str, Any], engagements: list[str]
) -> None:
    """No update, and no error, for a batch of no rows."""
    pair = train_pair(
        linear_model,
        None,
        plus={"order": "given", **how},
        fit={"epochs": 2},
        our_fit={"x": filtered(keep), "batch_size": None},
        their_fit={"x": X[keep], "y": Y[keep]},
    )
    pair.our_logs.pop("skipped", None)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * int(keep.sum()))


@pytest.mark.parametrize("k", [4, *matrix(2, 8)])
def test_groups(k: int) -> None:
    """What is left over of a batch is a shorter group; the empty one is none."""
    keep = np.isin(np.arange(24), [4, 5, 6, 7, 16, 17])
    model = linear_model()
    model.compile(SGDPlus(0.01, order="given", examples_per_update=k), "mse")
    uneven = "Every batch of an epoch but the last should be a multiple"
    texts = caught_by(
        lambda: model.fit(filtered(keep), shuffle=False, verbose=0), uneven
    )
    assert len(texts) == (k == 8)  # empty ones say nothing
    assert int(model.optimizer.iterations) == sum(-(-n // k) for n in (4, 2))


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_batch_of_no_rows_by_hand(eagerly: bool) -> None:
    model = linear_model()
    model.compile(SGDPlus(0.01, momentum=0.9), "mse", run_eagerly=eagerly)
    model.train_on_batch(X, Y)
    variables = [*model.variables, *model.optimizer.variables]
    before = [v.numpy() for v in variables]
    logs = model.train_on_batch(X[:0], Y[:0], return_dict=True)
    model.optimizer.train_step(model, (X[:0], Y[:0]))
    assert np.isfinite(logs["loss"])
    for a, b in zip(before, variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_records_of_batches_of_no_rows() -> None:
    keep = KEPT["most_empty"]
    inputs = {"x": keras.Input((5,), name="x"), "row": keras.Input((), name="row")}
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs["x"]))
    model.compile(SGDPlus(0.01), "mse")
    data = tf.data.Dataset.from_tensor_slices((X, np.arange(24), Y, keep)).batch(4)
    data = data.map(lambda x, row, y, keep: ({"x": x[keep], "row": row[keep]}, y[keep]))
    log = ExampleLog(id="row")
    model.fit(data, shuffle=False, verbose=0, callbacks=[log])
    seen = np.isfinite(log.loss[0])
    np.testing.assert_array_equal(np.flatnonzero(seen), np.flatnonzero(keep))


@pytest.mark.matrix
@pytest.mark.parametrize("how", tiered_rows(HOW))
def test_one_weight_for_a_batch(how: dict[str, Any], engagements: list[str]) -> None:
    """Each example has it, as Keras broadcasts it; metrics have it, too."""
    weights = np.repeat(np.float32([0.5, 2.0, 0.0, 3.0]), 6)

    def data(batch: int) -> tf.data.Dataset:
        parts = [
            (X[i : i + batch], Y[i : i + batch], weights[i])
            for i in range(0, 24, batch)
        ]
        signature = (
            tf.TensorSpec((batch, 5), tf.float32),
            tf.TensorSpec((batch, 2), tf.float32),
            tf.TensorSpec((), tf.float32),
        )
        found = tf.data.Dataset.from_generator(
            lambda: iter(parts), output_signature=signature
        )
        return found.apply(tf.data.experimental.assert_cardinality(len(parts)))

    pair = train_pair(
        linear_model,
        None,
        plus={"order": "given", **how},
        compile=lambda: {"metrics": ["mae"], "weighted_metrics": ["mse"]},
        our_fit={"x": data(6), "batch_size": None, "validation_data": data(6)},
        their_fit={"x": data(1), "batch_size": None, "validation_data": data(6)},
    )
    pair.our_logs.pop("skipped", None)
    assert_same(pair)
    assert_engaged(pair, engagements, 24)


def test_one_weight_for_each_output() -> None:
    inputs = keras.Input((5,))
    heads = {name: keras.layers.Dense(1, name=name)(inputs) for name in "ab"}

    def train(weights: Any) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = keras.models.clone_model(keras.Model(inputs, heads))
        model.compile(SGDPlus(0.01, order="given"), {"a": "mse", "b": "mae"})
        y = {"a": Y[:, :1], "b": Y[:, 1:]}
        model.train_on_batch(X, y, sample_weight=weights)
        return model.get_weights()

    one = train({"a": tf.constant(0.5), "b": tf.constant(2.0)})
    each = train({"a": np.full(24, 0.5), "b": np.full(24, 2.0)})
    for a, b in zip(one, each, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
