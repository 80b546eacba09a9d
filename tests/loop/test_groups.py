"""`examples_per_update=k` equals Keras's SGD at `batch_size=k` in the same order."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import visiting_order
from tests.support.messages import normalises
from tests.support.oracle import Oracle
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import Pair, assert_same, dense_data, dense_model, train_pair
from tests.support.zoo import ZOO

pytestmark = normalises

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


@pytest.mark.parametrize("jit_compile", ["auto", *matrix(False)], ids=["xla", "no_xla"])
@pytest.mark.parametrize("sizes", tiered_rows(GROUPS, "short last group"))
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


@pytest.mark.matrix
@pytest.mark.parametrize(
    "case_id", ["conv_bn_dropout", "embedding_mask", "mlp_float16"]
)
def test_groups_of_model_equal_keras(case_id: str, engagements: list[str]) -> None:
    """Statistics, masks and the loss scale see whole groups, also a short one."""
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


@pytest.mark.matrix
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
