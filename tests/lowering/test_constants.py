"""Layers on constants that the model holds, as in graph networks, equal Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.support.twins import assert_engaged, assert_same, train_pair

NODES = 12  # of the graph; an example is the number of one
CLASSES = 400  # with 12 nodes more than `losses.MIN_ENTRIES` logits

_rng = np.random.default_rng(0)
FEATURES = _rng.normal(size=(NODES, 20)).astype("float32")
EDGES = _rng.integers(0, NODES, size=(2, 30)).astype("int32")
LINKED = (_rng.random((NODES, NODES)) < 0.3).astype("float32")
LOGITS = _rng.normal(size=(NODES, CLASSES)).astype("float32")
Y = _rng.normal(size=(NODES, 1)).astype("float32")


class Holding(keras.Model):
    """A model with tensors that were made eagerly, which `compute` uses."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        super().__init__()
        self.compute = compute
        self.features = ops.convert_to_tensor(FEATURES)
        self.row = ops.convert_to_tensor(FEATURES[:1])
        self.edges = ops.convert_to_tensor(EDGES)
        self.linked = ops.convert_to_tensor(LINKED)
        self.logits = ops.convert_to_tensor(LOGITS)
        self.hidden = layers.Dense(6, "tanh")
        self.out = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return ops.take(self.compute(self), ops.reshape(x, (-1,)), axis=0)


def _messages(model: Any) -> Any:
    # A layer on all nodes, whose outputs are summed along the edges.
    hidden = model.hidden(model.features)
    sent = ops.take(hidden, model.edges[0], axis=0)
    received = ops.segment_sum(sent, model.edges[1], num_segments=NODES)
    return model.out(hidden + received)


def _adjacency(model: Any) -> Any:
    return model.out(ops.matmul(model.linked, model.hidden(model.features)))


def _looked_up(model: Any) -> Any:
    return model.out(model.hidden(ops.take(model.features, model.edges[1], axis=0)))


def _loss_of_constants(model: Any) -> Any:
    # A loss between constants: a term that changes no weight, and is logged.
    labels = model.edges[0][:NODES]
    cross_entropy = ops.sparse_categorical_crossentropy
    model.add_loss(ops.mean(cross_entropy(labels, model.logits, from_logits=True)))
    return model.out(model.hidden(model.features))


def _short_product(model: Any) -> Any:
    # 20 inputs and one output: the form of `layout` for short dot products.
    return model.hidden(model.features) * model.out(model.row)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "compute",
    [_messages, _loss_of_constants, _adjacency, _looked_up, _short_product],
    ids=lambda compute: compute.__name__.strip("_"),
)
def test_layers_on_constants_equal_keras(
    compute: Callable[[Any], Any], engagements: list[str]
) -> None:
    # Where XLA does not take the model, a warning would fail the test.
    x = np.arange(NODES, dtype="int32")[:, None]
    pair = train_pair(lambda: Holding(compute), x, Y)
    assert_same(pair)
    assert_engaged(pair, engagements, NODES)
