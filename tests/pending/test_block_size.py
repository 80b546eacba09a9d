"""Which kernels are large enough for blocks, and that they are found in `fit`."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import block_plan


@pytest.mark.parametrize(
    ("shape", "plain", "with_momentum"),
    [
        ((20, 1), None, None),
        ((784, 10), None, None),  # too few outputs
        ((64, 1024), None, None),  # too few inputs
        ((132, 32), None, None),  # too few of both
        ((784, 32), None, 64),
        ((132, 128), 64, 64),
        ((784, 128), 64, 64),
        ((2048, 2048), 128, 128),
    ],
)
def test_the_size_decides(
    shape: tuple[int, int], plain: int | None, with_momentum: int | None
) -> None:
    assert block_plan.block_size(*shape, False) == plain
    assert block_plan.block_size(*shape, True) == with_momentum


@pytest.mark.matrix
def test_fit_finds_a_kernel_that_is_large_enough(blocks_used: list[int]) -> None:
    model = keras.Sequential(
        [keras.Input((132,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(1)]
    )
    model.compile(SGDPlus(1e-4), "mse")
    x = np.random.default_rng(0).normal(size=(70, 132)).astype("float32")
    model.fit(x, x[:, :1], verbose=0)
    assert blocks_used[-1] == 1
