"""Every kind of model equals `keras.optimizers.SGD` at `batch_size=1`."""

from __future__ import annotations

import pytest

from tests.support.compare import bound_of
from tests.support.messages import normalises
from tests.support.tiers import tiered_rows
from tests.support.twins import assert_same, train_pair
from tests.support.zoo import ZOO, Case

pytestmark = normalises

# One of each kind; the matrix has the others, among them those that compile for long.
DEFAULT = ("mlp", "conv2d_pool")


@pytest.mark.parametrize("case", tiered_rows(ZOO, *DEFAULT))
def test_model_equals_keras(case: Case, engagements: list[str]) -> None:
    x, y = case.data(30)
    # XLA draws other random numbers than TensorFlow's own kernels, and rounds reduced
    # precision at other places. For such models Keras is compiled, too.
    compiled = "dropout" in case.id or case.dtype.startswith("mixed")
    with case.policy():
        pair = train_pair(
            case.model,
            x,
            y,
            sgd={"learning_rate": case.learning_rate},
            compile={
                "loss": case.loss,
                "metrics": case.metrics(),
                "jit_compile": compiled,
            },
            our_compile={"jit_compile": False},
        )
    assert_same(pair, bound_of(case.dtype, num_updates=30))
    assert engagements == [pair.ours.name] * len(engagements)
    assert 1 <= len(engagements) <= 2  # one more if a first trace builds the model
    assert int(pair.ours.optimizer.iterations) == 30
