"""`examples_per_update=k`: Keras's SGD at `batch_size=k` over the same order."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from keras_sgd_plus._order import visiting_order
from tests.oracle import Oracle
from tests.support.zoo import ZOO
from tests.twins import Pair, assert_same, dense_data, dense_model, train_pair

GROUPS: dict[str, tuple[int, int, int]] = {
    # id: examples, batch size, examples per update
    "divides all": (32, 16, 4),
    "short last group": (30, 12, 4),
    "last batch below a group": (26, 12, 6),
    "group is the batch": (24, 8, 8),
    "one of many": (30, 10, 1),
}


def _pair(size: int, group: int, x: Any, y: Any, **options: Any) -> Pair:
    plus = {"order": "given", "examples_per_update": group}
    ours, theirs = {"batch_size": size}, {"batch_size": group}
    make_model = options.pop("make_model", dense_model)
    return train_pair(
        make_model, x, y, plus=plus, our_fit=ours, their_fit=theirs, **options
    )


@pytest.mark.parametrize("jit_compile", ["auto", False], ids=["xla", "no_xla"])
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_groups_equal_keras(
    sizes: tuple[int, int, int], jit_compile: Any, engagements: list[str]
) -> None:
    num_examples, size, group = sizes
    x, y = dense_data(num_examples)
    pair = train_pair(
        dense_model,
        x,
        y,
        plus={
            "examples_per_update": group,
            "order": "given",
            "jit_compile": jit_compile,
        },
        compile={"metrics": ["mae"]},
        our_fit={"batch_size": size},
        their_fit={"batch_size": group},
        fit={"epochs": 2},
    )
    assert_same(pair)
    assert int(pair.ours.optimizer.iterations) == 2 * -(-num_examples // group)
    assert engagements


@pytest.mark.parametrize(
    "case_id", ["conv_bn_dropout", "embedding_mask", "mlp_float16"]
)
def test_groups_of_model_equal_keras(case_id: str, engagements: list[str]) -> None:
    """Statistics, masks and the loss scale see whole groups, the short one too."""
    case = ZOO[case_id]
    x, y = case.data(27)
    pair = _pair(
        12,
        4,
        x,
        y,
        make_model=case.model,
        sgd={"learning_rate": case.learning_rate},
        compile={"loss": case.loss, "metrics": ["accuracy"], "jit_compile": True},
        our_compile={"jit_compile": False},
    )
    # In float16 a sum over the rows of a group may round in another order (2**-11).
    assert_same(pair, 1e-4 if case_id == "mlp_float16" else None)
    assert engagements


def test_sample_weights_divide_by_the_size_of_the_group(engagements: list[str]) -> None:
    x, y = dense_data(30)
    weights = np.linspace(0, 2, 30).astype("float32")
    pair = _pair(12, 4, x, y, fit={"sample_weight": weights})
    assert_same(pair)
    assert engagements


def test_reshuffled_groups_equal_numpy() -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    x, y = (a.astype("float64") for a in dense_data(22))
    model = dense_model()
    oracle = Oracle(model.get_weights(), 0.05, momentum=0.875)
    model.compile(SGDPlus(0.05, 0.875, seed=2, examples_per_update=4), "mse")
    model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    for start, size, counter in ((0, 12, 0), (12, 10, 3)):
        order = visiting_order(2, counter, size).numpy() + start
        oracle.visit(x, y, [order[i : i + 4] for i in range(0, size, 4)])
    for variable, array in zip(model.trainable_variables, oracle.weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), array, rtol=1e-12, atol=1e-14)
    assert int(model.optimizer.iterations) == oracle.iterations == 6


def _warnings_of(
    size: int, group: int, num_examples: int = 48, **fit: Any
) -> list[str]:
    x, y = dense_data(num_examples)
    model = dense_model()
    model.compile(SGDPlus(0.01, examples_per_update=group), "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, batch_size=size, epochs=3, verbose=0, **fit)
    return [str(w.message) for w in caught if "examples_per_update" in str(w.message)]


def test_uneven_groups_are_warned_of_once_with_the_numbers() -> None:
    (message,) = _warnings_of(size=10, group=4)
    assert "examples_per_update=4" in message
    assert "after 10 examples with a group of 2" in message


def test_a_batch_below_a_group_is_warned_of() -> None:
    (message,) = _warnings_of(size=8, group=16)
    assert "after 8 examples with a group of 8" in message


@pytest.mark.parametrize(
    ("size", "num_examples"), [(16, 48), (16, 42), (42, 42)], ids=str
)
def test_only_the_last_batch_may_be_uneven(size: int, num_examples: int) -> None:
    assert _warnings_of(size, 4, num_examples) == []


def test_no_groups_is_stock_sgd(engagements: list[str]) -> None:
    x, y = dense_data(32)
    pair = train_pair(
        dense_model,
        x,
        y,
        plus={"examples_per_update": None},
        our_fit={"batch_size": 8},
        their_fit={"batch_size": 8},
    )
    assert pair.difference().bit_equal
    assert int(pair.ours.optimizer.iterations) == 4
    assert engagements == []
