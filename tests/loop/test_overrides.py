"""The loop calls the methods that a model overrides: its loss, metrics and logs."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers, metrics, ops

from tests.loop.test_metrics import Peak
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    assert_engaged,
    assert_same,
    dense_data,
    train_pair,
)

N = 20
TWO_EPOCHS = {"epochs": 2}  # the second starts from metrics that were reset


class OwnLoss(keras.Model):
    """Computes its loss, and updates a metric while at it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gap = metrics.Mean(name="gap")

    def compute_loss(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: Any = 1
    ) -> Any:
        del training
        loss = ops.mean(ops.square(y - y_pred)) + 0.1 * ops.mean(ops.square(x[:, :1]))
        self.gap.update_state(ops.abs(y - y_pred), sample_weight)
        return loss


class OldStyleLoss(OwnLoss):
    """As written before `training` was an argument."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight)


class ExtraLogs(keras.Model):
    """Returns more than the metrics: a metric of its own, and plain tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worst = Peak(name="worst")

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        self.worst.update_state(y, y_pred)
        worst = self.worst.result()
        return {**logs, "worst": worst, "last": ops.sum(y_pred), "one": 1.0}


class OwnMetrics(keras.Model):
    """Lists its metrics itself, so that Keras's own loss tracker is not among them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gap = metrics.Mean(name="gap")

    @property
    def metrics(self) -> list[Any]:
        return [self.gap]

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        self.gap.update_state(ops.abs(y - y_pred))
        return self.get_metrics_result()


OVERRIDES = {c.__name__: c for c in (OwnLoss, OldStyleLoss, ExtraLogs, OwnMetrics)}


@pytest.mark.matrix
@pytest.mark.parametrize("model_class", tiered_rows(OVERRIDES))
def test_overridden_method(model_class: Any, engagements: list[str]) -> None:
    def make() -> keras.Model:
        x = keras.Input((5,))
        return model_class(x, layers.Dense(2)(x))

    x, y = dense_data(N)
    own_loss = issubclass(model_class, OwnLoss)
    compile = {"loss": None} if own_loss else {"metrics": ["mae"]}
    pair = train_pair(make, x, y, compile=compile, fit=TWO_EPOCHS)
    assert_same(pair)
    assert_engaged(pair, engagements, 2 * N)
    own = {"ExtraLogs": {"worst", "last", "one"}}.get(model_class.__name__, {"gap"})
    assert own <= pair.our_logs.keys()
