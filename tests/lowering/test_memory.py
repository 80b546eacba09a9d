"""The compiled loop needs the memory of one example."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support import hlo


def test_activations_take_the_memory_of_one_example() -> None:
    """Temporary memory of the compiled loop does not grow with the batch."""
    sizes = []
    for num_examples in (16, 1024):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(512), keras.layers.Dense(1)]
        )
        model.compile(SGDPlus(0.01), "mse")
        sizes.append(_largest_buffer(model, num_examples))
    small, large = sizes
    # One activation of the larger batch would be 1024 * 512 * 4 bytes.
    assert large - small < 1024 * 64 < 1024 * 512 * 4


def _largest_buffer(model: keras.Model, num_examples: int) -> int:
    """Bytes of the largest tensor in the loop's HLO, inputs of the batch apart."""
    x = np.ones((num_examples, 4), "float32")
    with pytest.MonkeyPatch.context() as patch:
        text = hlo.optimized(patch, model, x, x[:, :1])
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return max(4 * int(np.prod([int(d) for d in s.split(",")])) for s in shapes)
