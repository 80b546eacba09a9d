"""The loop updates other variables as Keras does: sparse, constrained, overwritten."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_sgd_plus import SGDPlus
from tests.support.stories import Run, run_pair
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)

N = 20


def _embedding_model() -> keras.Model:
    ids = keras.Input((4,), dtype="int32")
    rows = layers.Embedding(9, 3)(ids)
    return keras.Model(ids, layers.Dense(1)(layers.Flatten()(rows)))


def _ids() -> tuple[np.ndarray, np.ndarray]:
    # There are few ids, so that one often comes twice in an example.
    x = np.random.default_rng(0).integers(0, 5, (N, 4)).astype("int32")
    return x, np.sin(x.sum(1, keepdims=True)).astype("float32")


SPARSE: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "clipnorm": {"momentum": 0.0, "clipnorm": 0.1},
    "clipvalue": {"momentum": 0.0, "clipvalue": 0.05},
    "global_clipnorm": {"momentum": 0.0, "global_clipnorm": 0.1},
    "decay_and_ema": {
        "momentum": 0.0,
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_momentum": 0.8,
    },
    "accumulation": {"momentum": 0.9, "gradient_accumulation_steps": 3},
}


@pytest.mark.matrix
@pytest.mark.parametrize("sgd", tiered_rows(SPARSE))
def test_sparse_gradient(sgd: dict[str, Any], engagements: list[str]) -> None:
    pair = train_pair(_embedding_model, *_ids(), sgd={"learning_rate": 0.03, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
def test_exclusion_from_weight_decay(engagements: list[str]) -> None:
    def story(run: Run, exclude: bool = True) -> None:
        optimizer = run.optimizer(weight_decay=0.5)
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        run.compile(optimizer)
        run.fit(*dense_data(N))

    pair = run_pair(dense_model, story)
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    plain = Run(dense_model, True)
    story(plain, exclude=False)
    gaps = [
        np.abs(a - b).max()
        for a, b in zip(pair.ours.get_weights(), plain.model.get_weights(), strict=True)
    ]
    assert max(gaps) > 1e-3  # the exclusion matters


CONSTRAINED: dict[str, dict[str, Any]] = {
    "every_update": {},
    "while_accumulating": {"gradient_accumulation_steps": 3},
}


@pytest.mark.parametrize("sgd", tiered_rows(CONSTRAINED, "every_update"))
def test_constraint(sgd: dict[str, Any], engagements: list[str]) -> None:
    def make() -> keras.Model:
        return dense_model(
            kernel_constraint=keras.constraints.UnitNorm(),
            bias_constraint=keras.constraints.NonNeg(),
        )

    x, y = dense_data(N)
    pair = train_pair(make, x, y, sgd={"learning_rate": 0.1, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    kernel, bias = pair.ours.get_weights()[:2]
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)
    assert (bias >= 0).all() and (bias == 0).any()


class Ranged(layers.Layer):
    """Divides by a range whose "gradient" is its next value, as float8 scales do."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 2), initializer="random_normal")
        self.range = self.add_weight(
            shape=(),
            initializer="ones",
            autocast=False,
            overwrite_with_gradient=True,
        )

    def call(self, x: Any) -> Any:
        @ops.custom_gradient
        def scaled(x: Any, value: Any) -> Any:
            def grad(*args: Any, upstream: Any = None) -> Any:
                if upstream is None:
                    (upstream,) = args
                # A tenth of the way to the largest input seen in this step.
                return upstream / value, 0.9 * value + 0.1 * ops.max(ops.abs(x))

            return x / value, grad

        x = scaled(x, ops.convert_to_tensor(self.range))
        return ops.matmul(x, self.kernel)


OVERWRITTEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "with_options": {
        "weight_decay": 0.1,
        "clipnorm": 0.2,
        "loss_scale_factor": 4.0,
    },
}


@pytest.mark.parametrize("sgd", tiered_rows(OVERWRITTEN, "plain"))
def test_variable_overwritten_with_gradient(
    sgd: dict[str, Any], engagements: list[str]
) -> None:
    def make() -> keras.Model:
        return keras.Sequential([keras.Input((5,)), Ranged()])

    x, y = dense_data(N)
    pair = train_pair(make, x, y, sgd={"learning_rate": 0.1, **sgd})
    assert_same(pair)
    assert_engaged(pair, engagements, N)
    (value,) = (v for v in pair.ours.trainable_variables if v.overwrite_with_gradient)
    assert abs(float(value) - 1.0) > 0.05


@pytest.mark.parametrize("steps", [None, *matrix(2)], ids=["plain", "accumulation"])
@pytest.mark.parametrize("xla", [*matrix(True), False], ids=["xla", "no_xla"])
def test_float8(xla: bool, steps: int | None, engagements: list[str]) -> None:
    """Rounding to 8 bits can turn one float32 ulp into 1/16 of a value.

    So Keras has to run the same kernels. Under XLA only the first examples round alike.
    """

    def make() -> keras.Model:
        dense = layers.Dense(16)
        model = keras.Sequential([keras.Input((16,)), dense])
        dense.quantize("float8")
        return model

    num_examples = 4 if xla else N
    pair = train_pair(
        make,
        *dense_data(num_examples, 16, 16),
        sgd={"gradient_accumulation_steps": steps},
        plus={"jit_compile": xla},
        compile={"jit_compile": xla},
        our_compile={"jit_compile": False},
    )
    assert_same(pair, tolerance=1e-2 if xla else None, logs=1e-3 if xla else 2e-5)
    assert_engaged(pair, engagements, num_examples)


def test_without_trainable_weights(engagements: list[str]) -> None:
    """Keras warns, updates statistics and metrics, and counts no update."""
    x, y = dense_data(N)
    results = []
    for optimizer, batch_size in (
        (SGDPlus(0.1, order="given"), 7),
        (keras.optimizers.SGD(0.1), 1),
    ):
        keras.utils.set_random_seed(1)
        layer = layers.Dense(2)
        layer.trainable = False
        model = keras.Sequential([keras.Input((5,)), layer])
        before = model.get_weights()
        model.compile(optimizer, "mse", metrics=["mae"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logs = model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        texts = {str(w.message) for w in caught}
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        results.append((logs.history, int(optimizer.iterations), texts))
    ours, theirs = results
    assert ours[1:] == theirs[1:]
    assert ours[2] == {"The model does not have any trainable weights."}
    assert ours[0].keys() == theirs[0].keys()
    for name in theirs[0]:
        np.testing.assert_allclose(ours[0][name], theirs[0][name], rtol=2e-5)
    assert engagements


@pytest.mark.matrix
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_an_optimizer_that_knows_more_variables_than_the_model(nonfinite: str) -> None:
    """As after `model.pop()`; Keras trains the variables that are left."""
    x, y = dense_data(N)
    weights = []
    for is_ours in (True, False):
        keras.utils.set_random_seed(1)
        first, last = layers.Dense(2), layers.Dense(3)
        whole = keras.Sequential([keras.Input(x.shape[1:]), first, last])
        if is_ours:
            optimizer: Any = SGDPlus(0.02, 0.9, order="given", nonfinite=nonfinite)
        else:
            optimizer = keras.optimizers.SGD(0.02, 0.9)
        optimizer.build(whole.trainable_variables)
        part = keras.Sequential([keras.Input(x.shape[1:]), first])
        part.compile(optimizer, "mse")
        part.fit(x, y, batch_size=N if is_ours else 1, shuffle=False, verbose=0)
        weights.append([*part.get_weights(), *(v.numpy() for v in optimizer.variables)])
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
