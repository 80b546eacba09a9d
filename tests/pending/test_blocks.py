"""Kernels that wait in blocks of examples end where single updates end."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import (
    BLOCK_ERROR,
    FLOAT64,
    SGD_ARGS,
    inverse_time,
    inverse_time_schedule,
)
from tests.support.internals import blocks, gradient, walk
from tests.support.oracle import Oracle
from tests.support.tiers import tiered_keys

pytestmark = pytest.mark.usefixtures("short_blocks")

Fault = Callable[[pytest.MonkeyPatch], None]

INPUTS, UNITS, OUTPUTS = 40, 60, 2  # 2,400 entries: just large enough here
RATE = 2.0**-9  # exact in float32, in which Keras keeps it
NUM_EXAMPLES = 220
BATCH = 150  # two blocks of 64 and a part of one; then one and a part of one

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{
        name: SGD_ARGS[name]
        for name in (
            "momentum",
            "nesterov",
            "weight_decay",
            "decay_momentum",
            "clipnorm",
            "global_clipnorm",
        )
    },
    "nesterov_decay": {"momentum": 0.875, "nesterov": True, "weight_decay": 0.125},
    "momentum_one": {"momentum": 1.0, "learning_rate": 2.0**-13},
    "clipped_decay": {"momentum": 0.5, "weight_decay": 0.125, "clipnorm": 0.1},
}
DEFAULT = ("clipped_decay",)


def _data(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM_EXAMPLES, INPUTS))
    return x, x @ rng.normal(size=(INPUTS, OUTPUTS)) / INPUTS


def _of_sgd(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "order"}


def _model(
    inputs: int = INPUTS, hidden: bool = True, dtype: str = "float64", **settings: Any
) -> Any:
    keras.utils.set_random_seed(1)
    keras.config.set_floatx(dtype)  # of the data, too; conftest.py sets it back
    layers: list[Any] = [keras.Input((inputs,), dtype=dtype)]
    if hidden:
        layers += [keras.layers.Dense(UNITS, "tanh", dtype=dtype, name="hidden")]
    layers += [keras.layers.Dense(OUTPUTS, dtype=dtype)]
    model = keras.Sequential(layers, name="same")
    model.compile(SGDPlus(**{"learning_rate": RATE, **settings}), "mse")
    return model


def _fit(model: Any, x: Any, y: Any, **kwargs: Any) -> Any:
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **kwargs)


def _compare_with_numpy(options: dict[str, Any]) -> None:
    """Weights, velocities and the logged loss; float64, three blocks and two more."""
    model = _model(order="given", **options)
    oracle = Oracle(model.get_weights(), **{"learning_rate": RATE, **options})
    x, y = _data()
    logs = _fit(model, x, y).history
    oracle.visit(x, y, range(NUM_EXAMPLES))
    found, expected = model.get_weights(), oracle.weights
    if options.get("momentum"):
        found = [*found, *(v.numpy() for v in model.optimizer.momentums)]
        expected = [*expected, *oracle.velocities]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)
    np.testing.assert_allclose(logs["loss"], [np.mean(oracle.losses)], rtol=1e-6)


@pytest.mark.parametrize("name", tiered_keys(OPTIONS, *DEFAULT))
def test_against_numpy(name: str, blocks_used: list[int]) -> None:
    _compare_with_numpy(OPTIONS[name])
    assert blocks_used[-1] == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"weight_decay": 0.125, "momentum": 0.75}, id="decay_momentum"),
    ],
)
@pytest.mark.matrix
def test_a_schedule(options: dict[str, Any], blocks_used: list[int]) -> None:
    settings = {**options, "learning_rate": inverse_time_schedule()}
    model = _model(order="given", **settings)
    oracle = Oracle(model.get_weights(), **{**options, "learning_rate": inverse_time})
    x, y = _data()
    _fit(model, x, y)
    oracle.visit(x, y, range(NUM_EXAMPLES))
    assert blocks_used[-1] == 1
    for value, expected in zip(model.get_weights(), oracle.weights, strict=True):
        # Keras computes a schedule in float32.
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "hidden", [True, pytest.param(False, id="softmax", marks=pytest.mark.matrix)]
)
def test_float32_is_no_worse_than_the_loop_without_blocks(
    hidden: bool, monkeypatch: pytest.MonkeyPatch, blocks_used: list[int]
) -> None:
    """Both are compared with float64. BLOCK_ERROR is 2 for another order of sums."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 1200 if not hidden else INPUTS))
    y = rng.normal(size=(NUM_EXAMPLES, OUTPUTS))
    errors = []
    settings = {"order": "given", "momentum": 0.875, "learning_rate": 2.0**-12}
    oracle = Oracle(_model(x.shape[1], hidden).get_weights(), **_of_sgd(settings))
    oracle.visit(x, y, range(NUM_EXAMPLES))
    for switch in ("1", "0"):
        monkeypatch.setenv("KERAS_SGD_PLUS_LOWERING", switch)
        model = _model(x.shape[1], hidden, "float32", **settings)
        start = model.get_weights()
        _fit(model, x, y)
        pairs = zip(model.get_weights(), oracle.weights, start, strict=True)
        errors.append(
            max(float(np.abs(a - b).max() / np.abs(b - s).max()) for a, b, s in pairs)
        )
        assert blocks_used[-1] == int(switch)
    assert errors[0] <= BLOCK_ERROR * errors[1]


BAD = (20, 100, 101, 180)  # in a first and a second block, and in the second batch


def _bad_data() -> tuple[np.ndarray, np.ndarray]:
    x, y = _data()
    x[BAD[0], 3], x[BAD[1], :], y[BAD[2], 0], x[BAD[3], 0] = (
        np.inf,
        np.nan,
        np.nan,
        np.nan,
    )
    return x, y


def _compare_bad(momentum: float, nonfinite: str) -> None:
    """With and without blocks: weights, losses, and what is said of bad examples."""
    runs = []
    for switch in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERAS_SGD_PLUS_LOWERING", switch)
            model = _model(momentum=momentum, nonfinite=nonfinite, weight_decay=0.125)
            said: list[Any] = []
            x, y = _bad_data()
            try:
                with warnings.catch_warnings(record=True):
                    warnings.simplefilter("always")
                    said.append(_fit(model, x, y).history)
            except FloatingPointError as error:
                said.append(str(error))
            said.append(model.optimizer.skipped_examples())
            runs.append((model.get_weights(), said, int(model.optimizer.iterations)))
    (ours, said, count), (theirs, expected, expected_count) = runs
    assert count == expected_count
    assert said[1] == expected[1]
    if nonfinite == "raise":
        assert said[0] == expected[0]
    else:
        np.testing.assert_allclose(said[0]["loss"], expected[0]["loss"], rtol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.matrix
@pytest.mark.parametrize("momentum", [0.0, 0.875])
@pytest.mark.parametrize("nonfinite", ["propagate", "raise", "skip"])
def test_bad_examples(momentum: float, nonfinite: str, blocks_used: list[int]) -> None:
    _compare_bad(momentum, nonfinite)
    assert 1 in blocks_used


def _of_all(name: str, change: Callable[..., Any]) -> Fault:
    """A fault: a function of `coefficients` gets other arguments or another result."""

    def break_it(patch: pytest.MonkeyPatch) -> None:
        original = getattr(blocks, name)
        patch.setattr(blocks, name, functools.partial(change, original))

    return break_it


def _rows_kept(start: Any, size: int, *rest: Any) -> Any:
    found = start(size, *rest)
    return found._replace(changes=tf.ones_like(found.changes))


def _one_later(advance: Any, now: Any, row: Any, *rest: Any) -> Any:
    return advance(now, row + 1, *rest)


def _whatever_applies(advance: Any, *arguments: Any) -> Any:
    return advance(*arguments[:-1], None)


def _velocity_decays(advance: Any, *arguments: Any) -> Any:
    after, factor = advance(*arguments), arguments[-2]
    return after._replace(velocity=factor * after.velocity)


def _velocities_lost(patch: pytest.MonkeyPatch) -> None:
    finished = blocks.finished

    def broken(product: Any, *rest: Any) -> Any:
        return finished(product, *rest)[0], product.velocity

    patch.setattr(blocks, "finished", broken)


def _whole_blocks(patch: pytest.MonkeyPatch) -> None:
    block_body = walk.block_body

    def broken(loop: Any, num_groups: Any, *rest: Any) -> Any:
        return block_body(loop, (num_groups + 63) // 64 * 64, *rest)

    patch.setattr(walk, "block_body", broken)


def _one_factor(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, limit: Any) -> Any:
        return self

    patch.setattr(gradient.OuterGradient, "clipped_by_norm", broken)


def _own_row_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(blocks, "_is_earlier", lambda size, row: tf.range(size) <= row)


FAULTS: dict[str, tuple[Fault, Callable[[], None]]] = {
    "own_row_counts": (_own_row_counts, lambda: _compare_with_numpy({})),
    "rows_kept": (
        _of_all("first_coefficients", _rows_kept),
        lambda: _compare_with_numpy(OPTIONS["momentum"]),
    ),
    "coefficients_off_by_one": (
        _of_all("advance_coefficients", _one_later),
        lambda: _compare_with_numpy(OPTIONS["momentum"]),
    ),
    "velocity_decays": (
        _of_all("advance_coefficients", _velocity_decays),
        lambda: _compare_with_numpy(OPTIONS["decay_momentum"]),
    ),
    "velocities_lost": (
        _velocities_lost,
        lambda: _compare_with_numpy(OPTIONS["momentum"]),
    ),
    "whole_blocks": (_whole_blocks, lambda: _compare_with_numpy({})),
    "kernel_not_clipped": (
        _one_factor,
        lambda: _compare_with_numpy(OPTIONS["clipnorm"]),
    ),
    "clock_of_skipped": (
        _of_all("advance_coefficients", _whatever_applies),
        lambda: _compare_bad(0.875, "skip"),
    ),
}


@pytest.mark.parametrize("name", tiered_keys(FAULTS, "velocities_lost"))
def test_a_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, compare = FAULTS[name]
    break_it(monkeypatch)
    with pytest.raises(AssertionError):
        compare()
