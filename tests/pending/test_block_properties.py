"""Random shapes, blocks, options and bad examples: with blocks as without, float64."""

from __future__ import annotations

from typing import Any

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_sgd_plus import SGDPlus
from tests.support.cases import FLOAT64
from tests.support.internals import block_plan

pytestmark = pytest.mark.matrix

OPTIONS = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.0, 0.5, 0.875, 1.0]),
        "nesterov": st.booleans(),
        "weight_decay": st.sampled_from([None, 0.125]),
        "clipnorm": st.sampled_from([None, 0.25]),
        "order": st.sampled_from(["given", "reshuffle"]),
        "nonfinite": st.sampled_from(["propagate", "skip"]),
    }
)


def _train(
    shape: tuple[int, int], length: int | None, batch: int, data: Any, options: Any
) -> tuple[list[Any], list[float]]:
    num_inputs, num_units = shape
    keras.config.set_floatx("float64")  # of the data
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((num_inputs,)),
            keras.layers.Dense(num_units, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(SGDPlus(2.0**-9, seed=1, **options), "mse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_plan, "block_size", lambda *_: length)
        history = model.fit(*data, batch_size=batch, shuffle=False, verbose=0).history
    state = [v.numpy() for v in model.optimizer.variables]
    return [*model.get_weights(), *state], history["loss"]


@hypothesis.settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],  # each try compiles two models
)
@hypothesis.given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    length=st.integers(1, 12),
    batch=st.integers(1, 40),
    bad=st.sets(st.integers(0, 39), max_size=3),
    options=OPTIONS,
)
@pytest.mark.filterwarnings("ignore:Every loss")  # of the examples that are bad
def test_blocks(
    shape: tuple[int, int], length: int, batch: int, bad: set[int], options: Any
) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(40, shape[0])), rng.normal(size=(40, 1))
    if options["nonfinite"] == "skip":
        x[sorted(bad)] = np.nan
    ours, loss = _train(shape, length, batch, (x, y), options)
    expected, expected_loss = _train(shape, None, batch, (x, y), options)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)
