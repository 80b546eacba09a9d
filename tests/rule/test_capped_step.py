"""`max_loss_fraction`: a step that looks at the loss of its own update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import FLOAT64, inverse_time, inverse_time_schedule
from tests.support.internals import parts, rule
from tests.support.oracle import Oracle
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import dense_data, dense_model

layers = keras.layers
Fault = Callable[[pytest.MonkeyPatch], None]

N = 24
# With these rates, exact in float32, the rule caps some steps, and not all.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"learning_rate": 2.0**-6},
    "momentum": {"learning_rate": 2.0**-8, "momentum": 0.75},
    "nesterov": {"learning_rate": 2.0**-8, "momentum": 0.75, "nesterov": True},
    "decay": {"learning_rate": 2.0**-6, "weight_decay": 0.125},
    "clipnorm": {"learning_rate": 2.0**-4, "clipnorm": 0.5},
    "clipvalue": {"learning_rate": 2.0**-4, "clipvalue": 0.25},
    "global_clipnorm": {"learning_rate": 2.0**-4, "global_clipnorm": 0.75},
    "ema": {
        "learning_rate": 2.0**-6,
        "use_ema": True,
        "ema_momentum": 0.875,
        "ema_overwrite_frequency": 4,
    },
    "groups": {"learning_rate": 2.0**-5, "examples_per_update": 2},
    "everything": {
        "learning_rate": 2.0**-5,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.125,
        "clipnorm": 0.5,
        "use_ema": True,
        "ema_momentum": 0.875,
        "examples_per_update": 2,
    },
}
DEFAULT = ("plain", "everything")


def in_float64() -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def _data() -> tuple[np.ndarray, np.ndarray]:
    x, y = dense_data(N)
    x[::3] *= 3  # their gradients are large
    return x.astype("float64"), y.astype("float64")


def _run(plus: dict[str, Any], **fit: Any) -> tuple[Any, Oracle, dict[str, Any]]:
    """A float64 model after `fit`, the oracle after the same updates, and the logs."""
    in_float64()
    x, y = _data()
    model = dense_model()
    plus = {"max_loss_fraction": 0.25, **plus}
    arguments = dict(plus)
    arguments.pop("jit_compile", None)
    size = arguments.pop("examples_per_update", 1)
    oracle = Oracle(model.get_weights(), **arguments)
    model.compile(SGDPlus(order="given", **plus), "mse")
    fit = {"batch_size": 12, "shuffle": False, "verbose": 0, "epochs": 2, **fit}
    history = model.fit(x, y, **fit).history
    groups = [list(range(i, i + size)) for i in range(0, N, size)]
    for _ in range(fit["epochs"]):
        oracle.visit(x, y, groups)
    oracle.finish()
    return model, oracle, history


def _assert_equals(model: Any, oracle: Oracle) -> None:
    pairs = [(model.trainable_variables, oracle.weights)]
    if model.optimizer.momentum:
        pairs.append((model.optimizer.momentums, oracle.velocities))
    for variables, arrays in pairs:
        for v, array in zip(variables, arrays, strict=True):
            np.testing.assert_allclose(v.numpy(), array, rtol=FLOAT64, atol=1e-14)


@pytest.mark.parametrize("jit_compile", ["auto", *matrix(False)])
@pytest.mark.parametrize("options", tiered_rows(OPTIONS, *DEFAULT))
def test_option_equals_numpy(
    options: dict[str, Any], jit_compile: Any, engagements: list[str]
) -> None:
    model, oracle, history = _run({**options, "jit_compile": jit_compile})
    _assert_equals(model, oracle)
    assert engagements
    updates = oracle.iterations
    assert updates / 10 <= oracle.capped < updates  # some, and not all
    np.testing.assert_allclose(np.mean(history["capped"]), oracle.capped / updates)


def test_schedule_equals_numpy() -> None:
    in_float64()
    x, y = _data()
    model = dense_model()
    oracle = Oracle(model.get_weights(), inverse_time, max_loss_fraction=0.0625)
    schedule = inverse_time_schedule()
    model.compile(SGDPlus(schedule, order="given", max_loss_fraction=0.0625), "mse")
    model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    oracle.visit(x, y, range(N))
    assert 0 < oracle.capped < N
    # Keras computes the schedule in float32, which limits the agreement.
    for variable, array in zip(model.trainable_variables, oracle.weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), array, rtol=1e-6, atol=1e-8)


def _linear(outputs: int = 1, use_bias: bool = True) -> Any:
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(outputs, use_bias=use_bias)]
    )


@pytest.mark.parametrize("phi", [*matrix(0.25), 1.0])
def test_linear_model_loses_exactly_its_fraction(phi: float) -> None:
    """With squared error one capped step takes the loss to (1 - phi/2)**2 of itself.

    f = e**2, g = 2 e (x, 1), |g|**2 = 4 f |(x, 1)|**2, so s = phi / (4 |(x, 1)|**2),
    and the step takes the error to e - s * 2 e |(x, 1)|**2 = (1 - phi / 2) e.
    """
    in_float64()
    x, y = dense_data(N, outputs=1)
    x, y = x.astype("float64"), y.astype("float64")
    model = _linear()
    model.compile(SGDPlus(1e6, order="given", max_loss_fraction=phi), "mse")
    for i in range(3):
        one = x[i : i + 1], y[i : i + 1]
        before = model.evaluate(*one, verbose=0)
        model.train_on_batch(*one)
        after = model.evaluate(*one, verbose=0)
        np.testing.assert_allclose(after, (1 - phi / 2) ** 2 * before, rtol=1e-12)


@pytest.mark.matrix
def test_equals_optax() -> None:
    """`optax.polyak_sgd`: the step is min(f / (c |g|**2), c * (eta / c))."""
    import jax
    import optax

    in_float64()
    x, y = _data()
    model = _linear(2)
    start = model.get_weights()
    c, rate = 2.0, 2.0**-5
    plus = {"order": "given", "max_loss_fraction": 1 / c}
    model.compile(SGDPlus(rate, **plus), "mse")
    (share,) = model.fit(x, y, batch_size=12, shuffle=False, verbose=0).history[
        "capped"
    ]
    assert 0.2 < share < 0.9
    older: Any = jax.experimental  # where jax 0.5 has it
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else older.enable_x64
    with enable_x64(True):
        rule = optax.polyak_sgd(rate / c, scaling=c, variant="sps+")

        def loss(weights: Any, x_i: Any, y_i: Any) -> Any:
            return jax.numpy.mean((x_i @ weights[0] + weights[1] - y_i) ** 2)

        weights = [jax.numpy.asarray(w) for w in start]
        state = rule.init(weights)
        for x_i, y_i in zip(x, y, strict=True):
            value, grads = jax.value_and_grad(loss)(weights, x_i, y_i)
            updates, state = rule.update(grads, state, weights, value=value)
            weights = optax.apply_updates(weights, updates)
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=FLOAT64, atol=1e-14)


def test_equals_the_passive_aggressive_step_of_scikit_learn() -> None:
    from sklearn.linear_model import SGDClassifier

    in_float64()
    x, y = dense_data(200, outputs=1)
    x = x.astype("float64")
    labels = np.where(y[:, 0] > 0, 1.0, -1.0)
    theirs = SGDClassifier(
        loss="hinge",
        penalty=None,
        learning_rate="pa1",
        eta0=0.125,
        fit_intercept=False,
        shuffle=False,
        max_iter=3,
        tol=None,
    ).fit(x, labels)
    model = _linear(use_bias=False)
    model.set_weights([np.zeros((5, 1))])
    model.compile(SGDPlus(0.125, order="given", max_loss_fraction=1.0), "hinge")
    history = model.fit(x, labels[:, None], epochs=3, shuffle=False, verbose=0).history
    assert 0.01 < min(history["capped"])
    np.testing.assert_allclose(
        model.get_weights()[0][:, 0], theirs.coef_[0], rtol=FLOAT64, atol=1e-14
    )


# Broken on purpose: each must move weights away from the oracle's.


def _wrapped(fault: Callable[[Any, Any, Any], Any]) -> Fault:
    """Puts a fault around the part; it gets the part's call, the part, the update."""

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        call = parts.CapStep.__call__
        broken = lambda part, update: fault(call, part, update)  # noqa: E731
        monkeypatch.setattr(parts.CapStep, "__call__", broken)

    return install


def _without_momentum(call: Any, part: Any, update: Any) -> Any:
    zero = tf.zeros((), tf.float64)
    return call(part, replace(update, numbers={**update.numbers, "momentum": zero}))


def _clipped_twice(call: Any, part: Any, update: Any) -> Any:
    return call(part, replace(update, unclipped=update.gradients))


def _decay_uncapped(monkeypatch: pytest.MonkeyPatch) -> None:
    decay = rule.Decay.__call__
    kept: list[Any] = []

    def capped(call: Any, part: Any, update: Any) -> Any:
        kept.append(update.learning_rates)
        return call(part, update)

    def decayed(part: Any, update: Any) -> Any:
        done = decay(part, replace(update, learning_rates=kept[-1]))
        return replace(done, learning_rates=update.learning_rates)

    _wrapped(capped)(monkeypatch)
    monkeypatch.setattr(rule.Decay, "__call__", decayed)


def _after_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [p for p in rule.GRADIENT_PARTS if p is not parts.CapStep]
    monkeypatch.setattr(rule, "GRADIENT_PARTS", tuple(others))
    later = (*rule.WEIGHT_PARTS, parts.CapStep)
    monkeypatch.setattr(rule, "WEIGHT_PARTS", later)


FAULTS: dict[str, tuple[Fault, str]] = {  # and the options with which it shows
    "no_factor_of_momentum": (_wrapped(_without_momentum), "momentum"),
    "clipped_in_both_places": (_wrapped(_clipped_twice), "clipnorm"),
    "decay_at_the_uncapped_rate": (_decay_uncapped, "decay"),
    "cap_after_the_update": (_after_the_update, "plain"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_rule_is_rejected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install, options = FAULTS[fault]
    install(monkeypatch)
    model, oracle, _ = _run({**OPTIONS[options], "jit_compile": False})
    with pytest.raises(AssertionError):
        _assert_equals(model, oracle)
