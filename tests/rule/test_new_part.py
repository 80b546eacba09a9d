"""A part of a rule that is defined here: its state is carried, saved and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import Part, Slot, Update, gradient, rule

MEANS = Slot("means", "means_of_gradients", "means_of_gradients")
KEEP = 0.75  # the part of the mean that an update keeps
RATE = 0.01


@dataclass(frozen=True)
class FollowMean(Part):
    """Steps along the running mean of gradients: m = keep * m + (1 - keep) * g."""

    keep: float

    @classmethod
    def slots(cls, optimizer: Any) -> tuple[Slot, ...]:
        return (MEANS,)

    @classmethod
    def of(cls, optimizer: Any, weights: Sequence[Any]) -> FollowMean:
        del optimizer, weights
        return cls(KEEP)

    def __call__(self, update: Update) -> Update:
        means, gradients = list(update.state.slots[MEANS.name]), {}
        for i, found in update.gradients.items():
            means[i] = self.keep * means[i] + (1 - self.keep) * found.dense()
            gradients[i] = gradient.DenseGradient(means[i])
        slots = {**update.state.slots, MEANS.name: means}
        state = update.state._replace(slots=slots)
        return replace(update, state=state, gradients=gradients)


@pytest.fixture
def with_part(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (*rule.GRADIENT_PARTS, FollowMean)
    monkeypatch.setattr(rule, "GRADIENT_PARTS", parts)


def _data() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 3)).astype("float32")
    return x, (x @ [1.0, -2.0, 0.5])[:, None].astype("float32")


def _model() -> Any:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(SGDPlus(RATE, momentum=0.5, order="given"), "mse")
    return model


def _expected(model: Any, x: Any, y: Any) -> dict[str, Any]:
    """The same in NumPy, float64, one example at a time."""
    w, b = (value.astype("float64") for value in model.get_weights())
    mean_w, mean_b, v_w, v_b = (np.zeros_like(a) for a in (w, b, w, b))
    for x_i, y_i in zip(x.astype("float64"), y.astype("float64"), strict=True):
        error = 2 * (x_i @ w + b - y_i)
        mean_w = KEEP * mean_w + (1 - KEEP) * np.outer(x_i, error)
        mean_b = KEEP * mean_b + (1 - KEEP) * error
        v_w, v_b = 0.5 * v_w - RATE * mean_w, 0.5 * v_b - RATE * mean_b
        w, b = w + v_w, b + v_b
    return {"w": w, "b": b, "mean_w": mean_w, "mean_b": mean_b}


def test_the_loop_carries_its_state(with_part: None) -> None:
    x, y = _data()
    model = _model()
    expected = _expected(model, x, y)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    means = model.optimizer.means_of_gradients
    found = [*model.get_weights(), *(m.numpy() for m in means)]
    for value, name in zip(found, ("w", "b", "mean_w", "mean_b"), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_its_state_is_saved_and_restored(with_part: None, tmp_path: Path) -> None:
    x, y = _data()
    whole = _model()
    for start in (0, 24):
        rows = slice(start, start + 24)
        whole.fit(x[rows], y[rows], shuffle=False, verbose=0)
        if not start:
            whole.save(tmp_path / "half.keras")
            means = [m.numpy() for m in whole.optimizer.means_of_gradients]
    half = keras.models.load_model(tmp_path / "half.keras")
    for mean, restored in zip(means, half.optimizer.means_of_gradients, strict=True):
        assert np.abs(mean).max() > 0
        np.testing.assert_array_equal(mean, restored.numpy())
    half.fit(x[24:], y[24:], shuffle=False, verbose=0)
    for a, b in zip(whole.get_weights(), half.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_it_the_variables_are_those_of_plain_sgd() -> None:
    plus, plain = SGDPlus(RATE, momentum=0.5), keras.optimizers.SGD(RATE, momentum=0.5)
    model = _model()
    for optimizer in (plus, plain):
        optimizer.build(model.trainable_variables)
    names = [v.path.split("/", 1)[-1] for v in plus.variables]
    assert names == [v.path.split("/", 1)[-1] for v in plain.variables]
    assert not hasattr(plus, MEANS.attribute)
