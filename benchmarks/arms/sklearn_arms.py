"""The arms on scikit-learn: `SGDRegressor`, whose loop over examples is Cython."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.linear_model import SGDRegressor

from benchmarks.arms import names
from benchmarks.arms.arm import Arm, Unsupported
from benchmarks.arms.workloads import Workload


@dataclass
class _Trained:
    """A regressor in training and its examples."""

    model: SGDRegressor
    x: np.ndarray
    y: np.ndarray

    def train(self) -> None:
        with config_context(assume_finite=True):  # the check took a tenth of the pass
            self.model.partial_fit(self.x, self.y)

    def weights(self) -> list[np.ndarray]:
        values = self.model.coef_.reshape(-1, 1), self.model.intercept_
        return [value.astype("float32") for value in values]


def _arm(shuffle: bool) -> Callable[..., Arm]:
    def make(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
        _check(workload)
        model = SGDRegressor(
            loss="squared_error",
            penalty=None,
            learning_rate="constant",
            # scikit-learn halves the squared error.
            eta0=2 * workload.learning_rate,
            shuffle=shuffle,
            # A generator, not a seed: a seed gives every pass the same order.
            random_state=np.random.RandomState(0),
        )
        kernel, bias = weights
        # As an earlier `partial_fit` leaves them. In given order float64 was a tenth
        # faster than float32, shuffled they were equal.
        model.coef_, model.intercept_ = kernel.ravel().astype(float), bias.astype(float)
        return _Trained(model, x.astype(float, order="C"), y.ravel().astype(float))

    return make


def _check(workload: Workload) -> None:
    if workload.network != "dense" or len(workload.sizes) > 2:
        raise Unsupported("scikit-learn's SGD trains linear models only")
    if workload.loss != "mse":
        raise Unsupported("SGDClassifier is one-vs-rest, not softmax")
    if workload.momentum:
        raise Unsupported("SGDRegressor has no momentum")


ARMS: dict[str, Callable[..., Arm]] = {
    "scikit-learn SGD": _arm(shuffle=False),
    names.SKLEARN: _arm(shuffle=True),
}
