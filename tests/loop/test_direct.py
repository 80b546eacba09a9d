"""Layers that use their `tf.Variable`s past Keras train as with Keras's SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.messages import assert_refused
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    train_pair,
)

X, Y = dense_data(12, outputs=1)


class _Layer(layers.Layer):
    def build(self, shape: Any) -> None:
        self.dense = layers.Dense(4, "tanh")
        self.dense.build(shape)
        self.kernel = self.add_weight(shape=(4, 4), name="matrix")
        self.calls = self.add_weight(shape=(), name="calls", trainable=False)


class TracedBefore(_Layer):
    """Calls a function that was traced before training."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        spec = tf.TensorSpec((None, shape[-1]), tf.float32)
        self.function = tf.function(self.dense).get_concrete_function(spec)

    def call(self, x: Any) -> Any:
        return self.function(x) @ self.kernel


class Twice(TracedBefore):
    """Uses the same weights by such a function, and as Keras does."""

    def call(self, x: Any) -> Any:
        return (self.function(x) + self.dense(x)) @ self.kernel


class InBranch(_Layer):
    """Reads a `tf.Variable` in a branch."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.variable = self.kernel.value

    def call(self, x: Any) -> Any:
        x = self.dense(x)
        is_small = tf.reduce_sum(x) < 1000.0
        return tf.cond(is_small, lambda: tf.matmul(x, self.variable), lambda: x)


class Counting(_Layer):
    """Reads the `tf.Variable` of a count that it assigns by Keras."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.variable = self.calls.value

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        return self.dense(x) / tf.convert_to_tensor(self.variable) @ self.kernel


class Assigning(InBranch):
    """Assigns a `tf.Variable` that Keras trains."""

    def call(self, x: Any) -> Any:
        self.variable.assign(0.5 * self.variable)
        return super().call(x)


def _model(layer: type[layers.Layer]) -> Any:
    return keras.Sequential([keras.Input((5,)), layer(), layers.Dense(1)])


NO_XLA = {"jit_compile": False, "order": "given"}
ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "traced_before": (TracedBefore, {}),
    "twice": (Twice, {}),
    "in_branch": (InBranch, {}),
    "assigned_by_keras": (Counting, {"plus": NO_XLA}),
    "run_eagerly": (Twice, {"our_compile": {"run_eagerly": True}}),
    "no_xla": (Twice, {"plus": NO_XLA}),
    "groups": (
        Twice,
        {
            "plus": {"examples_per_update": 2, "order": "given"},
            "their_fit": {"batch_size": 2},
            "our_fit": {"batch_size": 8},
        },
    ),
    "skip": (Twice, {"plus": {"nonfinite": "skip", **NO_XLA}}),
    "averages": (Twice, {"sgd": {"use_ema": True, "clipnorm": 1.0}, "plus": NO_XLA}),
}


@pytest.mark.parametrize(
    ("layer", "options"),
    tiered_rows(ROWS, "twice", unpack=True),
)
def test_layer_equals_keras(
    layer: type[layers.Layer], options: dict[str, Any], engagements: list[str]
) -> None:
    pair = train_pair(lambda: _model(layer), X, Y, **options)
    pair.our_logs.pop("skipped", None)  # of nonfinite="skip"
    assert_same(pair)
    size = options.get("plus", {}).get("examples_per_update", 1)
    assert_engaged(pair, engagements, len(X) // size)


def _restored(path: Path, trainable: bool) -> Callable[[], Any]:
    # A TFSMLayer with weights, statistics and a function that writes the latter.
    body = [layers.Dense(4, "tanh"), layers.Reshape((2, 2))]
    body += [layers.BatchNormalization(), layers.Flatten()]
    saved = keras.Sequential([keras.Input((5,)), *body])
    archive = keras.export.ExportArchive()
    archive.track(saved)
    spec = tf.TensorSpec((None, 5), tf.float32)
    archive.add_endpoint("serve", lambda x: saved(x, training=True), [spec])
    archive.write_out(str(path), verbose=False)

    def make() -> Any:
        layer = layers.TFSMLayer(str(path), "serve", "serve", trainable=trainable)
        return keras.Sequential([keras.Input((5,)), layer, layers.Dense(1)])

    return make


@pytest.mark.matrix
@pytest.mark.parametrize("trainable", [True, False])
def test_restored_functions_equal_keras(
    trainable: bool, engagements: list[str], tmp_path: Path
) -> None:
    make = _restored(tmp_path / "saved", trainable)
    # Keras cannot make velocities of restored variables, whose names have colons.
    pair = train_pair(make, X, Y, sgd={"learning_rate": 0.02, "momentum": 0.0})
    assert_same(pair)
    assert_engaged(pair, engagements, len(X))
    first, *_ = pair.ours.layers
    pairs = zip(first.get_weights(), make().layers[0].get_weights(), strict=True)
    moved = [np.abs(after - before).max() for after, before in pairs]
    # Kernel, bias, scale and offset; then the statistics, which move if frozen, too.
    assert [bool(m > 1e-3) for m in moved] == [trainable] * 4 + [True] * 2


def test_a_function_must_not_write_what_keras_trains() -> None:
    fix = r"Received: 'sequential.*matrix' of layer 'assigning.*set_weights"
    row = "_written_twice", lambda m: m.fit(X, Y, verbose=0), NotImplementedError, fix
    assert_refused(lambda: _model(Assigning), row)


def test_restored_functions_are_refused_under_a_strategy(tmp_path: Path) -> None:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = _restored(tmp_path / "saved", True)()
        model.compile(SGDPlus(0.02), "mse")
    with pytest.raises(NotImplementedError, match=r"layer 'tfsm.*TFSMLayer.*freeze"):
        model.fit(X, Y, verbose=0)
