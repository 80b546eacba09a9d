"""Very large inputs: a product that SGD does not form neither decides nor changes any.

Where an activation saturates, the gradient of its kernel is an exact zero, whatever the
input is. Keras stays finite there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import ExampleLog, SGDPlus
from tests.support.internals import blocks
from tests.support.tiers import matrix, tiered_rows
from tests.support.twins import Pair, assert_engaged, assert_same, train_pair

N, INPUTS, UNITS = 100, 140, 128  # updated in blocks
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, INPUTS)).astype("float32")
Y = RNG.normal(size=(N, 1)).astype("float32")
Product = blocks.Product
LARGEST = float(np.finfo("float32").max)
NETCDF = 9.97e36  # what netCDF files have where there is no number


def filled(value: float, *rows: int, x: np.ndarray = X) -> np.ndarray:
    """The data with a value in column 3 of some rows."""
    x = x.copy()
    x[list(rows), 3] = value
    return x


def saturating(
    inputs: int = INPUTS, units: int = UNITS, activation: str = "tanh"
) -> Callable[[], keras.Model]:
    """Makes a network whose hidden layer has a slope of zero at large inputs."""
    hidden = lambda: keras.layers.Dense(units, activation)  # noqa: E731
    return lambda: keras.Sequential(
        [keras.Input((inputs,)), hidden(), keras.layers.Dense(1)]
    )


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names the dtype of each Gram matrix that was traced."""
    seen: list[str] = []
    num_rows = Product.num_rows.fget
    assert num_rows

    def counted(product: Product) -> Any:
        seen.append(product.gram.dtype.name)
        return num_rows(product)

    monkeypatch.setattr(Product, "num_rows", property(counted))
    return seen


# Value, rows, arguments of SGD. Rows of one block and of two.
BLOCKS: dict[str, tuple[float, tuple[int, ...], dict[str, Any]]] = {
    "1e20": (1e20, (17, 18, 40), {"momentum": 0.0}),
    "netcdf": (NETCDF, (0, 40, 41, 63, 64, 99), {"momentum": 0.9}),
    "largest": (LARGEST, (17, 40), {"momentum": 0.9, "nesterov": True}),
    "negative": (-LARGEST, tuple(range(0, N, 3)), {"weight_decay": 0.1}),
    "all": (NETCDF, tuple(range(N)), {"momentum": 0.5, "weight_decay": 0.1}),
    "clipnorm": (NETCDF, (17, 40), {"momentum": 0.5, "clipnorm": 0.5}),
    "global_clipnorm": (NETCDF, (17, 40), {"global_clipnorm": 0.5}),
}


@pytest.mark.parametrize("value, rows, sgd", tiered_rows(BLOCKS, "netcdf", unpack=True))
def test_blocks(
    value: float,
    rows: tuple[int, ...],
    sgd: dict[str, Any],
    engagements: list[str],
    in_blocks: list[str],
) -> None:
    sgd = {"learning_rate": 0.001, **sgd}
    x = filled(value, *rows)
    pair = train_pair(saturating(), x, Y, sgd=sgd, our_fit={"batch_size": N})
    assert in_blocks, "the layer was not walked in blocks"
    # The changes are small beside the weights, which are rounded at each.
    assert_same(pair, 2e-4)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:The loss should be finite")
def test_whole_blocks_would_give_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = property(lambda product: product.gram.shape[0])
    monkeypatch.setattr(Product, "num_rows", whole)
    x = filled(NETCDF, 17, 40)
    sgd = {"learning_rate": 0.001}
    pair = train_pair(saturating(), x, Y, sgd=sgd, our_fit={"batch_size": N})
    assert np.isnan(pair.ours.get_weights()[0]).any()
    assert np.isfinite(pair.theirs.get_weights()[0]).all()


@pytest.mark.matrix
def test_a_small_change_of_a_large_input(engagements: list[str]) -> None:
    """What saturates only nearly moves the kernel, and later examples see that."""

    def make() -> keras.Model:
        model = saturating(activation="softsign")()  # with a slope of 1 / z**2
        kernel, *others = model.get_weights()
        kernel[3] = 1e-12
        model.set_weights([kernel, *others])
        return model

    sgd = {"learning_rate": 1e-4, "momentum": 0.5}
    x = filled(1e18, 3, 20, 21, 50)
    x[:, 3] = np.where(x[:, 3] < 1e17, x[:, 3] * 1e-3, x[:, 3])
    pair = train_pair(make, x, Y, sgd=sgd, our_fit={"batch_size": N})
    assert_same(pair, 1e-4)
    assert_engaged(pair, engagements, N)


@pytest.mark.matrix
def test_float64(engagements: list[str], in_blocks: list[str]) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    x = filled(1e300, 17, 40, x=X.astype("float64"))
    sgd = {"learning_rate": 0.001, "momentum": 0.9}
    pair = train_pair(saturating(), x, Y, sgd=sgd, our_fit={"batch_size": N})
    assert "float64" in in_blocks
    assert_same(pair, 1e-12)
    assert_engaged(pair, engagements, N)


@pytest.mark.filterwarnings("ignore:The loss should be finite")
@pytest.mark.parametrize("value", [np.inf, *matrix(np.nan)])
def test_infinite_inputs(value: float, in_blocks: list[str]) -> None:
    """The losses up to it are Keras's; its update spoils the weights, as in Keras."""
    sgd, x, losses = {"learning_rate": 0.001, "momentum": 0.9}, filled(value, 40), []
    ours, theirs = saturating()(), saturating()()
    ours.set_weights(theirs.get_weights())
    ours.compile(SGDPlus(**sgd, order="given"), "mse")
    theirs.compile(keras.optimizers.SGD(**sgd), "mse")
    log = ExampleLog()
    ours.fit(x, Y, N, shuffle=False, verbose=0, callbacks=[log])
    assert in_blocks
    for row in range(50):
        theirs.reset_metrics()
        losses.append(theirs.train_on_batch(x[row : row + 1], Y[row : row + 1]))
    assert np.isfinite(losses[40 if np.isinf(value) else 39])
    np.testing.assert_allclose(log.loss[0, :50], losses, rtol=1e-4, atol=1e-7)


NORMS = {
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
}


@pytest.mark.matrix
@pytest.mark.parametrize("sgd", tiered_rows(NORMS))
def test_norms_of_products(sgd: dict[str, Any], engagements: list[str]) -> None:
    x = filled(1e25, 7, x=X[:20, :8])
    pair = train_pair(saturating(8, 70), x, Y[:20], sgd=sgd)
    assert_same(pair)
    assert_engaged(pair, engagements, 20)


def without(rows: list[int]) -> Pair:
    """Keras's SGD on the data without some rows, twice."""
    x, y = np.delete(X, rows, 0), np.delete(Y, rows, 0)
    sgd = {"learning_rate": 0.001, "momentum": 0.9}
    make = saturating(activation="relu")
    return train_pair(make, x, y, sgd=sgd, our_fit={"batch_size": N})


@pytest.mark.matrix
def test_one_bad_row_is_one_skip() -> None:
    """Its inputs are finite and its loss is not; other rows of its block are good."""
    model = saturating(activation="relu")
    keras.utils.set_random_seed(1)
    ours = model()
    optimizer = SGDPlus(0.001, momentum=0.9, order="given", nonfinite="skip")
    ours.compile(optimizer, "mse")
    with pytest.warns(UserWarning, match="position 17 of batch 0"):
        logs = ours.fit(filled(LARGEST, 17), Y, 100, shuffle=False, verbose=0).history
    assert logs["skipped"] == [1]
    theirs = without([17]).theirs
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.matrix
def test_raise_names_the_row() -> None:
    model = saturating(activation="relu")()
    model.compile(SGDPlus(0.001, order="given", nonfinite="raise"), "mse")
    x = filled(LARGEST, 17, 80)
    with pytest.raises(FloatingPointError, match="row 17"):
        model.fit(x, Y, batch_size=100, shuffle=False, verbose=0)


@pytest.mark.matrix
def test_max_loss_fraction_keeps_its_bound() -> None:
    """A product of an overflow and a zero is no reason to take the whole rate."""
    x, y = filled(1e25, 1, x=X[:3, :8]), Y[:3]
    keras.utils.set_random_seed(1)
    model = saturating(8, 70)()
    model.compile(SGDPlus(1.0, order="given", max_loss_fraction=1.0), "mse")
    before = model.predict(x[:1], verbose=0)
    logs = model.fit(x, y, batch_size=3, shuffle=False, verbose=0).history
    assert logs["capped"] == [1.0]
    assert np.isfinite(logs["loss"]).all()
    assert np.isfinite(before).all()


@pytest.mark.matrix
def test_a_recorded_norm_is_that_of_the_gradient() -> None:
    """Up to 1e30, where its square overflows; of a large input times zero it is 0."""
    x = np.array([[1e25, 1.0], [1e30, 0.0], [0.5, -2.0]], "float32")
    y = np.zeros((3, 1), "float32")
    kernel = np.array([[0.0], [0.25]], "float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([kernel, np.zeros(1, "float32")])
    model.compile(SGDPlus(0.0, order="given"), "mse")
    log = ExampleLog(gradient_norm=True)
    model.fit(x, y, shuffle=False, verbose=0, callbacks=[log])
    wide = x.astype("float64")
    error = 2 * (wide @ kernel)  # of the loss by the output
    expected = np.abs(error[:, 0]) * np.sqrt((wide**2).sum(1) + 1)
    np.testing.assert_allclose(log.gradient_norm[0], expected, rtol=1e-5)
