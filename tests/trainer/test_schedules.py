"""A schedule that ends within the first epoch gives one warning with numbers."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import pytest
from keras.optimizers import schedules

from keras_sgd_plus import SGDPlus
from tests.support.internals import notices
from tests.support.messages import caught_by
from tests.support.tiers import tiered_keys
from tests.support.twins import dense_data, linear_model

LONGER = "A learning-rate schedule should last longer than the first epoch"
N = 24
X, Y = dense_data(N)

# A schedule, its length, and the advice.
SHORT: dict[str, tuple[Any, float, str]] = {
    "cosine": (
        lambda: schedules.CosineDecay(0.01, 10),
        10,
        "For a decay over the whole fit use decay_steps={}.",
    ),
    "warmed": (
        lambda: schedules.CosineDecay(0.0, 7, warmup_target=0.01, warmup_steps=3),
        10,
        "Give decay_steps and warmup_steps in updates.",
    ),
    "warmup_off": (
        lambda: schedules.CosineDecay(0.01, 7, warmup_steps=3),
        7,
        "For a decay over the whole fit use decay_steps={}.",
    ),
    "restarts": (
        lambda: schedules.CosineDecayRestarts(0.01, 10),
        10,
        "Give first_decay_steps in updates.",
    ),
    "polynomial": (
        lambda: schedules.PolynomialDecay(0.01, 10),
        10,
        "For a decay over the whole fit use decay_steps={}.",
    ),
    "piecewise": (
        lambda: schedules.PiecewiseConstantDecay([4, 10], [0.01, 0.005, 0.001]),
        10,
        "Give boundaries in updates.",
    ),
    "exponential": (
        lambda: schedules.ExponentialDecay(0.01, 5, 0.1),
        10,
        "Give decay_steps in updates.",
    ),
    "inverse_time": (
        lambda: schedules.InverseTimeDecay(0.01, 1, 9.9),
        10,
        "Give decay_steps in updates.",
    ),
}
ENDLESS: dict[str, Any] = {
    "rises": lambda: schedules.ExponentialDecay(0.01, 1, 1.1),
    "constant": lambda: schedules.InverseTimeDecay(0.01, 1, 0.0),
    "slow": lambda: schedules.ExponentialDecay(0.01, 1, 0.9),  # 44 updates
    "whole_epoch": lambda: schedules.CosineDecay(0.01, N),
    "callable": lambda: lambda: 0.01,
    "number": lambda: 0.01,
}


def _compiled(rate: Any, **plus: Any) -> Any:
    model = linear_model()
    model.compile(SGDPlus(rate, **plus), "mse", run_eagerly=True)
    return model


def _fit(model: Any, **kwargs: Any) -> list[str]:
    arguments = {"batch_size": 8, "verbose": 0, **kwargs}
    return caught_by(lambda: model.fit(X, Y, **arguments), LONGER)


@pytest.mark.matrix
@pytest.mark.parametrize("name", SHORT)
def test_length(name: str) -> None:
    make, updates, _ = SHORT[name]
    assert notices.schedule_length(make()).updates == pytest.approx(updates)


@pytest.mark.parametrize("name", tiered_keys(SHORT, "cosine"))
def test_short_schedule_warns(name: str) -> None:
    make, _, meant = SHORT[name]
    epochs = 2 if name == "cosine" else 1
    (text,) = _fit(_compiled(make()), epochs=epochs)
    assert text.endswith(meant.format(N * epochs))
    ended = 7 if name == "warmup_off" else 10
    assert f"after {ended} of the {N} updates of the first epoch" in text
    made = f"An epoch of this fit makes {N} updates, the whole fit {N * epochs}."
    assert made in text


@pytest.mark.parametrize("name", tiered_keys(ENDLESS, "whole_epoch", "number"))
def test_other_rates_are_silent(name: str) -> None:
    assert _fit(_compiled(ENDLESS[name]())) == []


@pytest.mark.matrix
def test_short_schedule_warns_once_at_the_end_of_the_first_epoch() -> None:
    model = _compiled(SHORT["cosine"][0]())
    during: list[int] = []

    def note(epoch: int, logs: Any) -> None:
        during.append(len(caught))

    def evaluate(batch: int, logs: Any) -> None:
        model.evaluate(X, Y, verbose=0)  # resets metrics, and begins no epoch

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=note, on_train_batch_end=evaluate
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[callback])
        model.fit(X, Y, batch_size=8, verbose=0)
    assert during == [0, 1, 1]
    assert len(caught) == 1
    assert f"of the {N} updates of the first epoch" in str(caught[0].message)


@pytest.mark.matrix
def test_short_schedule_counts_what_the_optimizer_counts() -> None:
    (text,) = _fit(_compiled(SHORT["cosine"][0](), examples_per_update=2))
    assert "one per 2 examples. It ended after 10 of the 12 updates" in text
    assert text.endswith("decay_steps=12.")
    (text,) = _fit(_compiled(SHORT["cosine"][0](), gradient_accumulation_steps=2))
    assert "one per example. It ended after 10 of the 24 updates" in text
    stock = _compiled(schedules.CosineDecay(0.01, 1), examples_per_update=None)
    assert _fit(stock) == []


def test_short_schedule_of_data_without_an_end() -> None:
    model = _compiled(SHORT["cosine"][0]())

    def batches() -> Any:
        for i in range(0, N, 8):
            yield X[i : i + 8], Y[i : i + 8]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # Keras warns of the end of the generator
        model.fit(batches(), shuffle=False, verbose=0)
    text = str(caught[-1].message)
    assert f"after 10 of the {N} updates" in text
    assert text.endswith(f"decay_steps={N}.")


def test_resumed_optimizer_is_silent() -> None:
    model = _compiled(SHORT["cosine"][0]())
    model.train_on_batch(X[:2], Y[:2])
    assert _fit(model) == []
