"""Every kind of model: equal to `keras.optimizers.SGD` at `batch_size=1`."""

from __future__ import annotations

import pytest

from tests.support.compare import bound_of
from tests.support.zoo import ZOO, Case
from tests.twins import assert_same, train_pair


@pytest.mark.parametrize("case", ZOO.values(), ids=list(ZOO))
def test_model_equals_keras(case: Case, engagements: list[str]) -> None:
    x, y = case.data(30)
    # Random draws, and where reduced precision rounds, differ between XLA and
    # TensorFlow's own kernels: there Keras is compiled too.
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
    assert 1 <= len(engagements) <= 2  # one more where a first trace builds the model
    assert int(pair.ours.optimizer.iterations) == 30
