"""A live optimizer takes up a changed setting at once, or refuses it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.cases import inverse_time_schedule
from tests.support.messages import ErrorRow, Row, assert_refused, error_rows, fit
from tests.support.tiers import matrix, tiered_keys
from tests.support.twins import dense_data, dense_model, linear_model

START: dict[str, Any] = {
    "learning_rate": 0.02,
    "momentum": 0.9,
    "order": "given",
    "seed": 3,
    "jit_compile": False,
}
# These run without XLA, the others with it: each change traces the loop anew.
WITHOUT_XLA = (
    *("learning_rate", "weight_decay", "clipnorm"),
    *("examples_per_update", "order"),
)
CHANGES: dict[str, Any] = {
    "learning_rate": 0.1,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.5,
    "clipnorm": 0.01,
    "clipvalue": 0.001,
    "global_clipnorm": 0.01,
    "examples_per_update": 5,
    "order": "reshuffle",
    "jit_compile": False,
}


def _model(**settings: Any) -> Any:
    keras.utils.set_random_seed(2)
    model = dense_model()
    model.compile(SGDPlus(**{**START, **settings}), "mse")
    return model


def _fit(model: Any, epochs: int = 1, **kwargs: Any) -> None:
    x, y = dense_data()
    model.fit(x, y, batch_size=10, epochs=epochs, shuffle=False, verbose=0, **kwargs)


def _steps(model: Any) -> None:
    x, y = dense_data()
    for i in range(0, 30, 10):
        model.optimizer.train_step(model, (x[i : i + 10], y[i : i + 10]))


def _between_fits(model: Any, name: str, value: Any) -> None:
    _fit(model)
    setattr(model.optimizer, name, value)
    _fit(model)


def _inside_a_fit(model: Any, name: str, value: Any) -> None:
    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                setattr(self.model.optimizer, name, value)

    _fit(model, epochs=2, callbacks=[Change()])


def _between_steps(model: Any, name: str, value: Any) -> None:
    _steps(model)
    setattr(model.optimizer, name, value)
    _steps(model)


@functools.cache
def _unchanged(epochs: int, jit_compile: Any) -> tuple[list[Any], list[Any]]:
    """Weights and the optimizer's variables after epochs without a change."""
    model = _model(jit_compile=jit_compile)
    _fit(model, epochs)
    return model.get_weights(), [v.numpy() for v in model.optimizer.variables]


def _afresh(name: str, value: Any, jit_compile: Any) -> list[np.ndarray]:
    """A new optimizer with the setting takes over the state and trains on."""
    weights, variables = _unchanged(1, jit_compile)
    model = _model(**{"jit_compile": jit_compile, name: value})
    model.optimizer.build(model.trainable_variables)
    model.set_weights(weights)
    rate = model.optimizer.learning_rate.numpy()
    model.optimizer.set_weights(variables)
    model.optimizer.learning_rate = rate
    _fit(model)
    return model.get_weights()


WAYS: list[Callable[..., None]] = [_between_fits, _inside_a_fit, _between_steps]
DEFAULT = ("momentum",)


@pytest.mark.parametrize("name", tiered_keys(CHANGES, *DEFAULT))
def test_a_change_takes_effect(name: str, engagements: list[str]) -> None:
    jit_compile = False if name in WITHOUT_XLA else "auto"
    expected = _afresh(name, CHANGES[name], jit_compile)
    unchanged, _ = _unchanged(2, jit_compile)
    matters = name != "jit_compile"  # all others give other weights
    for weight, value in zip(unchanged, expected, strict=True):
        assert (np.abs(weight - value).max() > 1e-4) == matters
    for way in WAYS:
        model = _model(jit_compile=jit_compile)
        way(model, name, CHANGES[name])
        assert model.name in engagements
        for weight, value in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(
                weight, value, rtol=1e-5, atol=1e-6, err_msg=way.__name__
            )


@pytest.mark.matrix
@pytest.mark.parametrize("way", [_between_fits, _inside_a_fit, _between_steps])
def test_a_schedule_in_place_of_a_number(way: Callable[..., None]) -> None:
    model = _model()
    way(model, "learning_rate", inverse_time_schedule())
    constant = _model()
    _fit(constant, epochs=2)
    change = np.abs(model.get_weights()[0] - constant.get_weights()[0]).max()
    assert change > 1e-4
    again = _model()
    _between_fits(again, "learning_rate", inverse_time_schedule())
    for weight, value in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_from_per_batch_to_per_example_and_back(engagements: list[str]) -> None:
    model = _model(examples_per_update=None)
    counts = []
    for k in (None, 1, None, 10):
        model.optimizer.examples_per_update = k
        before = int(model.optimizer.iterations)
        _fit(model)
        counts.append(int(model.optimizer.iterations) - before)
    assert counts == [3, 30, 3, 3]
    assert len(engagements) == 2


@pytest.mark.matrix
def test_a_change_traces_once(engagements: list[str]) -> None:
    """And not at all where the setting has been so before."""
    model = _model(jit_compile="auto")
    _fit(model, epochs=2)
    _fit(model)
    assert len(engagements) == 1
    model.optimizer.nesterov = True
    _fit(model, epochs=2)
    _fit(model)
    assert len(engagements) == 2
    for nesterov in (False, True):
        model.optimizer.nesterov = nesterov
        _fit(model)
    assert len(engagements) == 2
    model.compile(model.optimizer, "mse")
    _fit(model)
    assert len(engagements) == 3


def _cycled(batch: int) -> float:
    return 0.5 + 0.1 * (batch % 4)


def test_momentum_is_cycled_without_a_new_trace(engagements: list[str]) -> None:
    """Against float64 NumPy, with another momentum for each batch of ten examples."""

    class Cycle(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.momentum = _cycled(batch)

    model = linear_model()
    model.compile(SGDPlus(0.02, momentum=0.9, order="given"), "mse")
    w, b = (value.astype(float) for value in model.get_weights())
    v_w, v_b = np.zeros_like(w), np.zeros_like(b)
    x, y = dense_data()
    model.fit(x, y, batch_size=10, shuffle=False, verbose=0, callbacks=[Cycle()])
    for i, (x_i, y_i) in enumerate(zip(x.astype(float), y.astype(float), strict=True)):
        error = 2 / y_i.size * (x_i @ w + b - y_i)
        momentum = _cycled(i // 10)
        v_w = momentum * v_w - 0.02 * np.outer(x_i, error)
        v_b = momentum * v_b - 0.02 * error
        w, b = w + v_w, b + v_b
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(kernel, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, b, rtol=1e-5, atol=1e-6)
    assert len(engagements) == 1


NUMBERS: dict[str, list[float]] = {
    "momentum": [0.9, 0.5],
    "weight_decay": [0.1, 0.5],
    "clipnorm": [0.1, 0.01],
    "clipvalue": [0.01, 0.001],
    "global_clipnorm": [0.1, 0.01],
    "ema_momentum": [0.9, 0.5],
}


@pytest.mark.parametrize("name", tiered_keys(NUMBERS))
@pytest.mark.matrix
def test_a_new_number_traces_nothing(name: str, engagements: list[str]) -> None:
    first, second = NUMBERS[name]
    extra = {"use_ema": True} if name == "ema_momentum" else {}
    model = _model(jit_compile="auto", **extra, **{name: first})
    _between_fits(model, name, second)
    assert len(engagements) == 1
    twin = _model(jit_compile="auto", **extra, **{name: first})
    _fit(twin, epochs=2)
    moved = np.abs(model.get_weights()[0] - twin.get_weights()[0]).max()
    assert moved > 1e-4
    model.optimizer.momentum = 0.0  # no velocity: that is another loop
    _fit(model)
    assert len(engagements) == 3


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "momentum": ({"momentum": 0.0}, 0.9, r"Make a new SGDPlus\(..., momentum=0.9\)"),
    "use_ema": ({}, True, r"Make a new SGDPlus\(..., use_ema=True\)"),
    "gradient_accumulation_steps": (
        {},
        4,
        r"Make a new SGDPlus\(..., gradient_accumulation_steps=4\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", [_between_fits, *matrix(*WAYS[1:])])
def test_what_needs_variables_is_refused(name: str, way: Callable[..., None]) -> None:
    settings, value, fix = REFUSED[name]
    model = _model(**settings)
    with pytest.raises(ValueError, match=fix):
        way(model, name, value)
    assert int(model.optimizer._iterations) == 30
    setattr(model.optimizer, name, settings.get(name))
    _fit(model)
    assert int(model.optimizer._iterations) == 60


def _fit_with_late_momentum(model: Any) -> None:
    model.compile(SGDPlus(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.momentum = 0.9
    fit(model)


ERRORS: dict[str, ErrorRow] = {
    "built_without": (
        linear_model,
        (
            "built_without",
            _fit_with_late_momentum,
            ValueError,
            r"`momentum` must be set before.*Make a new SGDPlus\(..., momentum=0.9\)",
        ),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)


TYPOS: dict[str, tuple[Any, str]] = {
    "order": ("shuffle", 'Use "reshuffle"'),
    "examples_per_update": (0, "Use 1 for one update per example"),
    "seed": (-1, "Use seed=None"),
    "nonfinite": ("ignore", 'Use "skip"'),
    "jit_compile": ("yes", 'Use "auto"'),
    "momentum": (1.5, "a float from 0 to 1"),
    "weight_decay": (float("inf"), "Use 1e-4"),
    "clipnorm": (float("inf"), "Use 1.0"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_is_refused_where_it_is_made(name: str) -> None:
    value, fix = TYPOS[name]
    optimizer = SGDPlus()
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=fix):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "ema_momentum"])
def test_text_is_refused_where_it_is_assigned(name: str) -> None:
    optimizer = SGDPlus(use_ema=True)
    before = getattr(optimizer, name)
    with pytest.raises(TypeError, match=f"Received: {name}='0.5'"):
        setattr(optimizer, name, "0.5")
    assert getattr(optimizer, name) == before


def test_settings_that_contradict_each_other_are_refused() -> None:
    optimizer = SGDPlus(nonfinite="skip")
    with pytest.raises(ValueError, match="Set examples_per_update to 1 or more"):
        optimizer.examples_per_update = None
    assert optimizer.examples_per_update == 1
    optimizer.nonfinite = "propagate"
    optimizer.examples_per_update = None
    with pytest.raises(ValueError, match="Set examples_per_update to 1 or more"):
        optimizer.nonfinite = "raise"
