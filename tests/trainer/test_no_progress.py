"""A loss that does not fall gives one warning; training that learns gives none."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.messages import caught_by
from tests.support.tiers import matrix, tiered_keys

FALL = "The loss should fall while a new optimizer trains"
N = 3_000
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 8)).astype("float32")
COUNTS = RNG.poisson(np.exp(4.5 + 0.7 * X[:, :1])).astype("float32")
NOISE = RNG.normal(size=(N, 1)).astype("float32")


def network(activation: str | None = None) -> keras.Model:
    hidden = [keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu")]
    last = keras.layers.Dense(1, activation)
    return keras.Sequential([keras.Input((8,)), *hidden, last])


def linear() -> keras.Model:
    """A linear model of zeros: the best one for `NOISE`."""
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    )


def compiled(model: Any, rate: Any = 0.01, loss: str = "mse", **plus: Any) -> Any:
    model.compile(SGDPlus(rate, **plus), loss)
    return model


def fit(model: Any, x: Any = X, y: Any = NOISE, **arguments: Any) -> list[str]:
    """What `fit` says, which must be of this kind."""
    arguments = {"batch_size": 300, "verbose": 0, **arguments}
    return caught_by(lambda: model.fit(x, y, **arguments), FALL)


@pytest.mark.parametrize("seed", [0, *matrix(1, 2, 5)])
def test_a_model_that_is_stuck(seed: int) -> None:
    """A few updates take the outputs to 0, where they pass no gradient back.

    Some of these seeds have a loss of 1e12 and more on the way there.
    """
    keras.utils.set_random_seed(seed)
    model = compiled(network("exponential"), loss="poisson")
    (text,) = fit(model, y=COUNTS, epochs=3)
    assert np.isfinite(model.history.history["loss"]).all()
    largest = f"{COUNTS.max():.4g}"
    parts = [
        "over the last 300 updates, with weights that hardly change any more, not",
        "below the",
        "of the first 100, with learning_rate=0.01.",
        f"(1) targets that are not scaled: y has numbers up to {largest} in size",
        "(2) the rate is per example",
        "(3) an output that is stuck: exponential",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_loss_that_rises() -> None:
    keras.utils.set_random_seed(0)
    model = compiled(linear(), 0.1)
    (text,) = fit(model, epochs=2)
    assert "updates, above the " in text and "learning_rate=0.1" in text
    assert "(1) the rate is per example" in text
    # The next `fit` goes on with the same optimizer.
    assert fit(model) == []


def test_what_it_says_is_what_was_seen() -> None:
    """The means are those of SGD in NumPy, one example at a time."""
    keras.utils.set_random_seed(0)
    model = compiled(linear(), 0.1, order="given")
    (text,) = fit(model, shuffle=False)
    weights, losses = np.zeros(9), []
    for row, target in zip(np.c_[X, np.ones(N)].astype("float64"), NOISE, strict=True):
        error = row @ weights - float(target[0])
        losses.append(error**2)
        weights = weights - 0.1 * 2 * error * row
    first, last = np.mean(losses[:100]), np.mean(losses[-300:])
    said = f"a mean loss of {last:.4g} over the last 300 updates, above the {first:.4g}"
    assert said in text
    # Two standard errors, by the larger variance.
    error = max(np.var(losses[:100]), np.var(losses[-300:])) * (1 / 100 + 1 / 300)
    assert last - first > 2 * error**0.5


@pytest.mark.matrix
def test_data_that_cannot_be_looked_at() -> None:
    keras.utils.set_random_seed(0)
    data = tf.data.Dataset.from_tensor_slices((X, COUNTS)).batch(100)
    model = compiled(network("exponential"), loss="poisson")
    (text,) = fit(model, data, None, batch_size=None, shuffle=False)
    assert "(1) the rate is per example" in text and "try learning_rate=0.0003" in text


@pytest.mark.matrix
def test_whole_epochs_as_batches() -> None:
    """The last of four epochs is the first that is a quarter of all updates."""
    keras.utils.set_random_seed(0)
    model = compiled(network("exponential"), loss="poisson")
    assert fit(model, y=COUNTS, batch_size=N, epochs=3) == []
    keras.utils.set_random_seed(0)
    model = compiled(network("exponential"), loss="poisson")
    (text,) = fit(model, y=COUNTS, batch_size=N, epochs=6)
    assert "over the last 3000 updates" in text


def well_begun() -> keras.Model:
    """A network that has learned half of the data, compiled anew for the others."""
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(keras.optimizers.Adam(0.003), "mse")
    model.fit(X, X[:, :1] * X[:, 1:2], batch_size=32, epochs=20, verbose=0)
    return compiled(model, 0.0005)


def imbalanced() -> keras.Model:
    """Knows how rare the class is, as it stands in recipes for rare classes."""
    keras.utils.set_random_seed(0)
    bias = keras.initializers.Constant(np.log(0.01))
    last = keras.layers.Dense(1, "sigmoid", bias_initializer=bias)
    hidden = keras.layers.Dense(16, "relu")
    model = keras.Sequential([keras.Input((8,)), hidden, last])
    return compiled(model, 0.01, "binary_crossentropy")


class Freeze(keras.callbacks.Callback):
    """Freezes a layer in mid-epoch; the compiled step goes on with it."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 5:
            self.model.layers[0].trainable = False


RARE = (np.random.default_rng(1).random((N, 1)) < 0.01).astype("float32")
SILENT: dict[str, Any] = {
    "learns": (lambda: compiled(network()), X[:, :1] * X[:, 1:2], {}),
    "fine_tuning": (well_begun, X[:, :1] * X[:, 1:2], {}),
    "imbalanced": (imbalanced, RARE, {}),
    "noise_at_its_optimum": (lambda: compiled(linear()), NOISE, {}),
    "noise_that_small_steps_leave": (lambda: compiled(linear(), 1e-6), NOISE, {}),
    "callable": (lambda: compiled(linear(), lambda: 1e-6), NOISE, {}),
    "schedule": (
        lambda: compiled(linear(), keras.optimizers.schedules.CosineDecay(1e-4, 2 * N)),
        NOISE,
        {},
    ),
    "momentum": (lambda: compiled(linear(), 1e-5, momentum=0.9), NOISE, {}),
    "accumulation": (
        lambda: compiled(linear(), 1e-4, gradient_accumulation_steps=100),
        NOISE,
        {},
    ),
    "frozen_midway": (
        lambda: compiled(network(), 1e-6),
        NOISE,
        {"callbacks": [Freeze()]},
    ),
    "rate_of_zero": (lambda: compiled(linear(), 0.0), NOISE, {}),
    "no_loss_left": (
        lambda: compiled(linear(), 0.01, "hinge"),
        np.zeros((N, 1), "float32"),
        {"sample_weight": np.zeros(N, "float32")},
    ),
    "few_updates": (
        lambda: compiled(linear(), 0.3, examples_per_update=10),
        NOISE,
        {},
    ),
}


@pytest.mark.parametrize("name", tiered_keys(SILENT, "learns", "few_updates"))
def test_silent(name: str) -> None:
    make, y, arguments = SILENT[name]
    assert fit(make(), y=y, epochs=2, **arguments) == []


def test_silent_with_a_train_step_of_its_own() -> None:
    """A GAN's losses rise and fall; nothing is wrong with that."""

    class Mine(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return self.optimizer.train_step(self, data)

    layers = linear().layers
    model = compiled(Mine([keras.Input((8,)), *layers]), 0.1)
    assert fit(model) == []


def test_silent_about_bad_examples_that_are_skipped() -> None:
    """They have no loss, and count neither among the first updates nor the last."""
    x = X.copy()
    x[:60] = np.nan
    model = compiled(linear(), 0.001, nonfinite="skip", order="given")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, NOISE + 3, 200, shuffle=False, verbose=0)
    assert [FALL in str(w.message) for w in caught] == [False]


@pytest.mark.matrix
@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_silent_at_the_optimum_for_many_seeds(rate: float) -> None:
    """The two means are alike; one of 40 such pairs is two standard errors apart."""
    model, said = compiled(linear(), rate), 0
    for seed in range(20):
        model.set_weights([np.zeros((8, 1)), np.zeros(1)])
        model.optimizer.iterations.assign(0)
        y = np.random.default_rng(seed).normal(size=(N, 1)).astype("float32")
        said += len(fit(model, y=y))
    assert said <= 1


RATES = {
    "nan": (lambda: network(), X[:, :1] * 3, "mse", {"learning_rate": 1.0}),
    "momentum": (
        lambda: network(),
        X[:, :1] * 3,
        "mse",
        {"learning_rate": 0.1, "momentum": 0.9},
    ),
    "groups": (
        lambda: network(),
        X[:, :1] * 3,
        "mse",
        {"learning_rate": 1.0, "examples_per_update": 4},
    ),
    "linear": (linear, X[:, :1] * 3, "mse", {"learning_rate": 0.3}),
    "counts": (
        functools.partial(network, "exponential"),
        np.minimum(COUNTS / 100, 9),
        "poisson",
        {"learning_rate": 0.1},
    ),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", tiered_keys(RATES))
def test_the_rate_that_is_suggested_trains(name: str) -> None:
    make, y, loss, given = RATES[name]
    plus = dict(given)
    keras.utils.set_random_seed(0)
    model = make()
    before = model.get_weights()
    compiled(model, plus.pop("learning_rate"), loss, **plus)
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y, batch_size=200, epochs=2, verbose=0)
        texts += [str(w.message) for w in caught]
    assert len(texts) == 1
    rate = float(texts[0].partition("try learning_rate=")[2].split(";")[0])
    model.set_weights(before)
    start = model.evaluate(X, y, verbose=0)
    compiled(model, rate, loss, **plus)
    model.fit(X, y, batch_size=200, epochs=2, verbose=0)
    end = model.evaluate(X, y, verbose=0)
    constant = np.mean((y - y.mean()) ** 2) if loss == "mse" else start
    assert end < min(start, constant) * 0.9 if loss == "mse" else end < start


@pytest.mark.matrix
def test_losses_that_no_float_holds() -> None:
    """In float64 they pass 1e200, whose square Python does not hold."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = compiled(linear(), 1e3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, NOISE, batch_size=5, verbose=0)
    assert len(caught) == 1 and "finite at the end of fit" in str(caught[0].message)


class Unreduced(keras.Sequential):
    """A model whose loss has an axis of length one."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any, **named: Any) -> Any:
        return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)


def test_a_loss_with_an_axis() -> None:
    model = compiled(Unreduced([keras.Input((8,)), *linear().layers]), 0.001)
    model.fit(X, NOISE, batch_size=300, verbose=0)
    assert int(model.optimizer.iterations) == N


class WithoutConfig(keras.losses.SparseCategoricalCrossentropy):
    """A loss of a user that cannot be saved."""

    def get_config(self) -> Any:
        raise NotImplementedError


def test_what_layers_and_losses_take_is_no_cause() -> None:
    """Images of 0 to 255 behind Rescaling; a class that the loss leaves out."""
    x = np.abs(X) * 50
    hidden = [keras.layers.Rescaling(1 / 255), keras.layers.Dense(8, "relu")]
    model = keras.Sequential([keras.Input((8,)), *hidden, keras.layers.Dense(3)])
    loss = WithoutConfig(True, ignore_class=255)
    model.compile(SGDPlus(1e30), loss)
    labels = np.where(np.arange(N) % 9, np.arange(N) % 3, 255)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, labels, batch_size=300, verbose=0)
    (text,) = [str(w.message) for w in caught]
    assert "(1) the rate is per example" in text and "try learning_rate=0.01" in text
    assert "numbers up to" not in text
    assert "labels from 0 to 2, and the model has 3 outputs" in text
