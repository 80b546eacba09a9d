"""Which models are walked in blocks, and which are not; all equal Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.internals import Scope, block_plan
from tests.support.tiers import tiered_keys
from tests.support.twins import assert_same, train_pair

INPUTS, UNITS = 32, 64
NUM_EXAMPLES = 80
RATE = {"learning_rate": 0.001, "momentum": 0.8}
layers = keras.layers

pytestmark = pytest.mark.usefixtures("short_blocks")


def _x(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(NUM_EXAMPLES, INPUTS))


def _y() -> Any:
    return np.random.default_rng(9).normal(size=(NUM_EXAMPLES, 1))


def _sequential(*before: Any, shape: Any = (INPUTS,), **kwargs: Any) -> Any:
    hidden = layers.Dense(UNITS, "tanh", **kwargs)
    return keras.Sequential([keras.Input(shape), *before, hidden, layers.Dense(1)])


def _normalized() -> Any:
    normalization = layers.Normalization()
    normalization.adapt(_x())
    return _sequential(normalization, layers.Rescaling(0.5, 0.1))


def _flattened() -> Any:
    return _sequential(layers.Flatten(), shape=(4, 8))


def _categories() -> Any:
    encoding = layers.CategoryEncoding(40, "one_hot")
    inputs = keras.Input((1,), dtype="int32"), keras.Input((INPUTS,))
    joined = layers.Concatenate()([encoding(inputs[0]), inputs[1]])
    hidden = layers.Dense(UNITS, "tanh")(joined)
    return keras.Model(inputs, layers.Dense(1)(hidden))


def _ids() -> Any:
    return np.random.default_rng(1).integers(0, 40, (NUM_EXAMPLES, 1))


def _two_first_layers() -> Any:
    inputs = keras.Input((INPUTS,)), keras.Input((INPUTS,))
    parts = [layers.Dense(UNITS, "tanh")(x) for x in inputs]
    return keras.Model(inputs, layers.Dense(1)(layers.Add()(parts)))


def _frozen_before() -> Any:
    frozen = layers.Dense(INPUTS, "relu", trainable=False)
    return _sequential(frozen)


class Centred(keras.Model):
    """A subclassed model whose first step is operations alone."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = layers.Dense(UNITS, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        x = x - keras.ops.mean(x, axis=-1, keepdims=True)
        return self.head(self.hidden(x))


WAITING: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
    "plain": (_sequential, _x, 1),
    "no_bias": (lambda: _sequential(use_bias=False), _x, 1),
    "normalized": (_normalized, _x, 1),
    "flattened": (_flattened, lambda: _x().reshape(-1, 4, 8), 1),
    "categories": (_categories, lambda: (_ids(), _x()), 1),
    "two_first_layers": (_two_first_layers, lambda: (_x(), _x(1)), 2),
    "frozen_before": (_frozen_before, _x, 1),
    "subclassed": (Centred, _x, 1),
}


@pytest.mark.parametrize("name", tiered_keys(WAITING, "normalized"))
def test_kernels_that_wait(name: str, blocks_used: list[int]) -> None:
    make, data, kernels = WAITING[name]
    pair = train_pair(make, data(), _y(), sgd=RATE, our_fit={"batch_size": 50})
    assert_same(pair)
    assert blocks_used[-1] == kernels


EXPECTED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "dense_first": (_sequential, _x),
    "flattened": (_flattened, lambda: _x().reshape(-1, 4, 8)),
    "rescaled": (lambda: _sequential(layers.Rescaling(0.5, 0.1)), _x),
    "two_first_layers": (_two_first_layers, lambda: (_x(), _x(1))),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", tiered_keys(EXPECTED))
def test_one_trace_where_a_kernel_is_given_the_data(
    name: str, blocks_used: list[int]
) -> None:
    make, data = EXPECTED[name]
    pair = train_pair(make, data(), _y(), sgd=RATE, our_fit={"batch_size": 50})
    assert_same(pair)
    assert len(blocks_used) == 1
    assert blocks_used[0] >= 1


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["changing", "normalized"])
def test_a_wrong_expectation_is_found(
    name: str, blocks_used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first trace looks whether it is so, and the next one knows."""
    make, kernels = {
        "changing": (lambda: _sequential(Averaging()), 0),
        "normalized": (_normalized, 1),
    }[name]

    def expected(model: Any) -> dict[int, Any]:
        hidden = next(x for x in model.layers if isinstance(x, layers.Dense))
        return {id(hidden.kernel): []}

    monkeypatch.setattr(block_plan, "given_the_data", expected)
    pair = train_pair(make, _x(), _y(), sgd=RATE, our_fit={"batch_size": 50})
    assert_same(pair)
    assert blocks_used[0] == 1
    assert blocks_used[-1] == kernels


class Tied(keras.Model):
    """Multiplies with the first kernel once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(UNITS, "tanh")

    def call(self, x: Any) -> Any:
        kernel = keras.ops.transpose(self.hidden.kernel)
        return keras.ops.matmul(self.hidden(x), kernel)[:, :1]

    def build(self, shape: Any) -> None:
        self.hidden.build(shape)
        self.built = True


class Twice(keras.Model):
    """Calls the first layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = layers.Dense(UNITS, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(self.hidden(x) + self.hidden(-0.5 * x))


class Penalized(keras.Model):
    """Adds the slope of the output by the inputs to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = layers.Dense(UNITS, "tanh"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.head(self.hidden(x))
        slope = tape.gradient(y, x)
        if slope is not None:  # as where Keras only asks for shapes
            self.add_loss(0.1 * keras.ops.sum(slope**2))
        return y


class Averaging(layers.Layer):
    """Subtracts a running mean of the inputs, which each example changes."""

    def build(self, shape: Any) -> None:
        self.mean = self.add_weight((shape[-1],), "zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.mean.assign(0.9 * self.mean + 0.1 * x[0])
        return x - self.mean


FALLING_BACK: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "small": (lambda: keras.Sequential([keras.Input((INPUTS,)), layers.Dense(1)]), {}),
    "regularizer": (lambda: _sequential(kernel_regularizer="l2"), {}),
    "constraint": (lambda: _sequential(kernel_constraint="max_norm"), {}),
    "use_ema": (_sequential, {"use_ema": True}),
    "accumulation": (_sequential, {"gradient_accumulation_steps": 2}),
    "clipvalue": (_sequential, {"clipvalue": 0.5}),
    "tied": (Tied, {}),
    "called_twice": (Twice, {}),
    "gradient_by_inputs": (Penalized, {}),
    "trained_before": (lambda: _sequential(layers.Dense(INPUTS, name="first")), {}),
    "changing_before": (lambda: _sequential(Averaging()), {}),
    "convolution_before": (
        lambda: _sequential(
            layers.Reshape((4, 8, 1)),
            layers.Conv2D(8, 3, trainable=False),
            layers.Flatten(),
        ),
        {},
    ),
    "half": (lambda: _sequential(dtype="mixed_bfloat16"), {}),
}


@pytest.mark.parametrize("name", tiered_keys(FALLING_BACK, "changing_before"))
def test_kernels_that_do_not_wait(name: str, blocks_used: list[int]) -> None:
    make, sgd = FALLING_BACK[name]
    pair = train_pair(make, _x(), _y(), sgd={**RATE, **sgd}, our_fit={"batch_size": 50})
    if name != "half":  # of which Keras rounds other sums
        assert_same(pair)
    assert blocks_used[-1] == 0


@pytest.mark.matrix
def test_dropout_before(blocks_used: list[int]) -> None:
    """What is drawn depends on a state that each example changes."""
    pair = train_pair(lambda: _sequential(layers.Dropout(0.5, seed=1)), _x(), _y())
    assert int(pair.ours.optimizer.iterations) == NUM_EXAMPLES
    assert blocks_used[-1] == 0


@pytest.mark.matrix
def test_groups(blocks_used: list[int]) -> None:
    pair = train_pair(
        _sequential,
        _x(),
        _y(),
        sgd=RATE,
        plus={"order": "given", "examples_per_update": 4},
        our_fit={"batch_size": 40},
        their_fit={"batch_size": 4},
    )
    assert_same(pair)
    assert blocks_used[-1] == 0


@pytest.mark.matrix
def test_loss_scaling(blocks_used: list[int]) -> None:
    from keras_sgd_plus import SGDPlus

    model = _sequential()
    inner = SGDPlus(0.01, order="given")
    model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse")
    model.fit(_x(), _y(), verbose=0)
    assert blocks_used[-1] == 0


@pytest.mark.matrix
def test_a_lost_gradient_by_the_inputs_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the note, the penalty would have no effect, and nobody would be told."""
    monkeypatch.setattr(Scope, "watched_inputs", lambda self, v, x: 0.0)
    pair = train_pair(Penalized, _x(), _y(), sgd=RATE, our_fit={"batch_size": 50})
    with pytest.raises(AssertionError):
        assert_same(pair)
