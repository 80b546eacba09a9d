"""In quantized layers integers stay and LoRA's adapters learn."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    batch_size_of,
    dense_data,
    dense_model,
    linear_model,
    optimizer_of,
    train_pair,
)

N = 28
X, Y = dense_data(N)
SGD = keras.optimizers.SGD


def _einsum() -> Any:
    dense = layers.EinsumDense("ab,bc->ac", 6, bias_axes="c", activation="tanh")
    return keras.Sequential([keras.Input((5,)), dense, layers.Dense(2)])


def _sequence() -> Any:
    stack = [layers.RepeatVector(2), layers.Dense(16, "tanh"), layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2)])


def _convolution() -> Any:
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2)])


def _embedding() -> Any:
    stack = [layers.Embedding(9, 3), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential([keras.Input((4,), dtype="int32"), *stack])


IDS = np.random.default_rng(0).integers(0, 9, (N, 4)).astype("int32")
# Model, position of the layer, mode of quantization, whether LoRA, trainable variables.
# The first layer is quantized: it rounds data, which are equal, and not activations.
CHANGED: dict[str, tuple[Any, int, str | None, bool, int]] = {
    "dense_int4": (dense_model, 0, "int4", False, 3),
    "dense_int8_lora": (dense_model, 0, "int8", True, 5),
    "einsum_int8_lora": (_einsum, 0, "int8", True, 5),
    "sequence_int8_lora": (_sequence, 1, "int8", True, 5),
    "embedding_int8_lora": (_embedding, 0, "int8", True, 4),
    "convolution_lora": (_convolution, 1, None, True, 5),
}


BY_DEFAULT = ("dense_int8_lora",)


@pytest.mark.parametrize("case", tiered_rows(CHANGED, *BY_DEFAULT))
def test_quantized_and_lora(case: Any, engagements: list[str]) -> None:
    """Frozen integers stay, their adapters and the layers around them learn."""
    make, position, mode, lora, num_trainable = case
    frozen = []

    def changed() -> Any:
        model = make()
        layer = model.layers[position]
        if mode:
            layer.quantize(mode)
        if lora:
            layer.enable_lora(2)
        frozen.append([v.numpy().copy() for v in layer.non_trainable_variables])
        return model

    pair = train_pair(changed, IDS if make is _embedding else X, Y)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    layer = pair.ours.layers[position]
    assert len(pair.ours.trainable_variables) == num_trainable
    assert ("int8" in [v.dtype for v in layer.non_trainable_variables]) is bool(mode)
    for variable, value in zip(layer.non_trainable_variables, frozen[0], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    adapters = [v for v in layer.trainable_variables if "lora" in v.name]
    assert len(adapters) == (2 if lora else 0)
    assert all(np.any(v.numpy()) for v in adapters)  # one of the two started at zero


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_quantized_between_fits(engagements: list[str]) -> None:
    """After a trained layer is quantized, its bias trains on, its kernel does not."""
    models = []
    for cls in (SGDPlus, SGD):
        keras.utils.set_random_seed(1)
        model = linear_model()
        model.compile(optimizer_of(cls, 0.02, 0.9), "mse")
        fit: dict[str, Any] = {"batch_size": batch_size_of(cls), "shuffle": False}
        model.fit(X, Y, **fit, verbose=0)
        model.quantize("int8")
        integers = model.layers[0].kernel.numpy().copy()
        bias = model.layers[0].bias.numpy().copy()
        model.fit(X, Y, **fit, verbose=0)
        np.testing.assert_array_equal(model.layers[0].kernel, integers)
        assert np.abs(model.layers[0].bias.numpy() - bias).min() > 1e-2
        models.append(model)
    ours, theirs = models
    assert int(ours.optimizer.iterations) == 2 * N
    assert set(engagements) == {ours.name}
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
