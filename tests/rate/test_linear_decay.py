"""LinearDecay: the rate of each batch, what is saved between batches, and refusals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import (
    AverageWeights,
    ExactResume,
    LinearDecay,
    SeededArrays,
    SGDPlus,
)
from tests.support.tiers import matrix_rows
from tests.support.twins import Interrupt, Interrupted, dense_data, linear_model

BASE = 0.04


class Rates(keras.callbacks.Callback):
    """Notes the rate that each batch is trained with, and that between batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[float] = []
        self.between: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._rate = float(self.model.optimizer.learning_rate.numpy())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.inside.append(self._rate)
        self.between.append(float(self.model.optimizer.learning_rate.numpy()))


def _model(optimizer: Any = None, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = linear_model()
    model.compile(optimizer or SGDPlus(BASE, seed=2), "mse", **options)
    return model


def _rates(decay: LinearDecay, model: Any = None, **fit: Any) -> Rates:
    x, y = dense_data(12)
    rates, model = Rates(), model or _model()
    given = {"batch_size": 4, "epochs": 2, "verbose": 0, **fit}
    model.fit(x, y, callbacks=[rates, decay], **given)
    np.testing.assert_allclose(rates.between, BASE, rtol=1e-7)
    assert float(model.optimizer.learning_rate.numpy()) == np.float32(BASE)
    return rates


def _line(num: int, start: int = 0, to: float = 0.0) -> list[float]:
    return [BASE + (to - BASE) * b / num for b in range(start, num)]


@pytest.mark.parametrize(
    ("decay", "fit", "expected"),
    [
        (LinearDecay(), {}, _line(6)),
        (LinearDecay(start_epoch=1), {"epochs": 3}, [BASE] * 3 + _line(6)),
        *matrix_rows(
            (LinearDecay(to=0.01), {}, _line(6, to=0.01)),
            (LinearDecay(), {"initial_epoch": 1, "epochs": 3}, _line(9, 3)),
            (LinearDecay(num_batches=3), {}, _line(6)),
        ),
    ],
    ids=["to zero", "start_epoch", "to another rate", "initial_epoch", "num_batches"],
)
def test_rate_of_each_batch(
    decay: LinearDecay, fit: dict[str, Any], expected: list[float]
) -> None:
    np.testing.assert_allclose(_rates(decay, **fit).inside, expected, rtol=1e-6)


def test_weights_are_those_of_rates_set_by_hand(engagements: list[str]) -> None:
    x, y = dense_data(12)
    model = _model(SGDPlus(BASE, momentum=0.9, order="given"))
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, y, epochs=2, callbacks=[LinearDecay()], **arguments)
    keras.utils.set_random_seed(1)
    plain = linear_model()
    plain.compile(keras.optimizers.SGD(BASE, momentum=0.9), "mse")
    for b, rate in enumerate(_line(6)):
        rows = slice(4 * (b % 3), 4 * (b % 3) + 4)
        plain.optimizer.learning_rate = rate
        plain.fit(x[rows], y[rows], batch_size=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert len(engagements) == 1  # a new rate traces nothing


def test_a_second_fit_falls_again() -> None:
    model = _model()
    for _ in range(2):
        found = _rates(LinearDecay(), model)
        np.testing.assert_allclose(found.inside, _line(6), rtol=1e-6)


@pytest.mark.matrix
def test_the_logs_have_the_rate_of_the_last_batch() -> None:
    x, y = dense_data(12)
    history = _model().fit(x, y, 4, epochs=2, verbose=0, callbacks=[LinearDecay()])
    expected = [_line(6)[2], _line(6)[5]]
    np.testing.assert_allclose(history.history["learning_rate"], expected, rtol=1e-6)


def test_a_rate_that_an_unwrapped_fit_has_left_is_put_back() -> None:
    """`fit` of Adam is looked up before the first callback wraps it."""
    decay = LinearDecay()
    model = _model(keras.optimizers.Adam(BASE))
    decay.set_model(model)
    decay.set_params({"epochs": 2, "steps": 3})
    decay.on_train_begin()
    decay.on_epoch_begin(1)
    decay.on_train_batch_begin(2)  # and an error ends the run
    found = _rates(LinearDecay(), model)
    np.testing.assert_allclose(found.inside, _line(6), rtol=1e-6)


def test_the_base_rate_is_back_after_an_error() -> None:
    x, y = dense_data(12)
    model = _model()
    with pytest.raises(Interrupted):
        callbacks = [LinearDecay(), Interrupt(0, 1)]
        model.fit(x, y, 4, epochs=2, verbose=0, callbacks=callbacks)
    assert float(model.optimizer.learning_rate.numpy()) == np.float32(BASE)


@pytest.mark.matrix
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_checkpoint_has_the_base_rate(place: str, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    save = keras.callbacks.ModelCheckpoint(path, save_freq=2)
    callbacks = [LinearDecay(), save] if place == "first" else [save, LinearDecay()]
    x, y = dense_data(12)
    _model().fit(x, y, 4, verbose=0, callbacks=callbacks)
    loaded = keras.models.load_model(path)
    assert float(loaded.optimizer.learning_rate.numpy()) == np.float32(BASE)


@pytest.mark.matrix
@pytest.mark.parametrize("stop", [(0, 1), (1, 0)], ids=str)
def test_a_resumed_run_has_the_same_bits(stop: tuple[int, int], tmp_path: Path) -> None:
    x, y = dense_data(12)

    def train(*more: Any, directory: Path | None = None) -> list[np.ndarray]:
        model = _model(SGDPlus(BASE, momentum=0.9, seed=2))
        resume = [] if directory is None else [ExactResume(directory, 1)]
        model.fit(
            SeededArrays(x, y, batch_size=4, seed=1),
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[LinearDecay(), *resume, *more],
        )
        return [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]

    whole = train()
    with pytest.raises(Interrupted):
        train(Interrupt(*stop), directory=tmp_path)
    for one, other in zip(train(directory=tmp_path), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_beside_other_callbacks_and_optimizers() -> None:
    x, y = dense_data(12)
    model = _model(keras.optimizers.Adam(BASE), steps_per_execution=3)
    rates = Rates()
    stopping = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    callbacks = [rates, LinearDecay(), AverageWeights(), stopping]
    model.fit(x, y, 4, epochs=4, verbose=0, callbacks=callbacks)
    expected = [_line(12)[0], _line(12)[3]]
    np.testing.assert_allclose(rates.inside, expected, rtol=1e-6)
    assert float(model.optimizer.learning_rate.numpy()) == np.float32(BASE)


def test_loss_scaling() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(SGDPlus(BASE))
    found = _rates(LinearDecay(), _model(optimizer))
    np.testing.assert_allclose(found.inside, _line(6), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length() -> None:
    x, y = dense_data(12)

    def batches() -> Any:
        for i in range(0, 12, 4):
            yield x[i : i + 4], y[i : i + 4]

    signature = tuple(tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in (x, y))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0}
    with pytest.raises(ValueError, match=r"LinearDecay\(num_batches=n\)"):
        _model().fit(data, callbacks=[LinearDecay()], **arguments)
    rates = Rates()
    decay = LinearDecay(num_batches=3)
    _model().fit(data, callbacks=[rates, decay], **arguments)
    np.testing.assert_allclose(rates.inside, _line(6), rtol=1e-6)


def test_one_batch_warns() -> None:
    x, y = dense_data(4)
    with pytest.warns(UserWarning, match="more than one batch"):
        _model().fit(x, y, 4, verbose=0, callbacks=[LinearDecay()])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"to": -1.0}, ValueError, "`to` must be a finite number >= 0"),
        ({"to": float("nan")}, ValueError, "`to` must be"),
        ({"to": "0"}, TypeError, "`to` must be"),
        ({"start_epoch": -1}, ValueError, "`start_epoch` must be an int >= 0"),
        ({"start_epoch": 1.0}, TypeError, "`start_epoch` must be"),
        ({"num_batches": 0}, ValueError, "`num_batches` must be an int >= 1"),
    ],
)
def test_arguments(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LinearDecay(**arguments)


@pytest.mark.parametrize(
    ("decay", "optimizer", "other", "match"),
    [
        (LinearDecay(start_epoch=2), None, None, "must be an epoch of fit"),
        (LinearDecay(num_batches=5), None, None, "data of 3 batches"),
        (
            LinearDecay(),
            SGDPlus(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
            None,
            "is a schedule",
        ),
        (LinearDecay(), None, LinearDecay(), "LinearDecay beside it"),
        (
            LinearDecay(),
            None,
            keras.callbacks.ReduceLROnPlateau("loss"),
            "ReduceLROnPlateau beside it",
        ),
        (
            LinearDecay(),
            None,
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
            "LearningRateScheduler beside it",
        ),
    ],
)
def test_refused_in_fit(decay: Any, optimizer: Any, other: Any, match: str) -> None:
    x, y = dense_data(12)
    callbacks = [decay, *([] if other is None else [other])]
    with pytest.raises(ValueError, match=match):
        _model(optimizer).fit(x, y, 4, epochs=2, verbose=0, callbacks=callbacks)


def test_a_loop_by_hand_says_its_epochs() -> None:
    model = _model()
    callbacks = keras.callbacks.CallbackList([LinearDecay()], model=model)
    with pytest.raises(ValueError, match="must know the number of epochs"):
        callbacks.on_train_begin()
    callbacks = keras.callbacks.CallbackList(
        [LinearDecay()], model=model, epochs=2, steps=3
    )
    callbacks.on_train_begin()
    rates = []
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(3):
            callbacks.on_train_batch_begin(batch)
            rates.append(float(model.optimizer.learning_rate.numpy()))
            callbacks.on_train_batch_end(batch)
    np.testing.assert_allclose(rates, _line(6), rtol=1e-6)


def test_a_copy_has_the_arguments() -> None:
    copy = pickle.loads(pickle.dumps(LinearDecay(0.001, 2, 7)))
    assert (copy.to, copy.start_epoch, copy.num_batches) == (0.001, 2, 7)
