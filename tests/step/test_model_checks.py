"""Every message about a model says the fix; warnings come once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.messages import (
    WEIGHTS,
    ErrorRow,
    Row,
    assert_refused,
    caught_by,
    compiled,
    error_rows,
    fit,
    step,
)
from tests.support.tiers import matrix, matrix_rows


def _unconnected() -> Any:
    class Unconnected(keras.Sequential):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return tf.constant(1.0)

    return Unconnected([keras.Input((5,)), layers.Dense(2)])


def _partly_connected() -> Any:
    class Half(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = layers.Dense(2), layers.Dense(2)
            self.used.build((None, 5))
            self.unused.build((None, 5))

        def call(self, x: Any) -> Any:
            return self.used(x)

    return Half()


def _forgetful() -> Any:
    unknown = iter([keras.Variable(0.0, trainable=False) for _ in range(20)])

    class Forgetful(keras.Sequential):
        def compute_metrics(self, *args: Any, **kwargs: Any) -> Any:
            next(unknown).assign(1.0)  # another one in every trace
            return super().compute_metrics(*args, **kwargs)

    return Forgetful([keras.Input((5,)), layers.Dense(2)])


def _stateful(batch_size: int) -> Any:
    x = keras.Input(batch_shape=(batch_size, 3, 5))
    return keras.Model(x, layers.Dense(2)(layers.LSTM(2, stateful=True)(x)))


def _stateful_inside() -> Any:
    class Inside(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = layers.LSTM(2, stateful=True, name="remembers")

        def call(self, x: Any) -> Any:
            return self.recurrent(x)

    model = Inside()
    model(np.ones((8, 3, 5), "float32"))
    return model


def _reshaped() -> Any:
    x = keras.Input((5,), batch_size=8)
    flat = keras.ops.reshape(x, (keras.ops.shape(x)[0], 5))  # which is 8
    return keras.Model(x, layers.Dense(2)(flat))


def _enlarged() -> Any:
    # One example would become eight, and the loss would take the target for all.
    x = keras.Input((5,), batch_size=8)
    return keras.Model(x, layers.Dense(2)(x) + np.ones((8, 2), "float32"))


class AssignsInBranch(layers.Layer):
    """Writes a variable in one branch of a condition."""

    def build(self, input_shape: Any) -> None:
        del input_shape
        self.scale = self.add_weight((5, 2), "ones")
        self.count = self.add_weight((), "zeros", trainable=False)

    def call(self, x: Any) -> Any:
        def counted() -> Any:
            self.count.assign(self.count + 1)
            return x

        x = tf.cond(tf.reduce_sum(x) > 0, counted, lambda: x)
        return keras.ops.matmul(x, self.scale)


ERRORS: dict[str, ErrorRow] = {
    "fixed_batch_size": (
        lambda: _stateful(8),
        (
            "model",
            lambda m: m.fit(np.ones((8, 3, 5)), np.ones((8, 2)), verbose=0),
            ValueError,
            r"'lstm\w*'.*batch size 8.*Build it with batch_size=1",
        ),
    ),
    "fixed_batch_size_by_hand": (
        lambda: _stateful(8),
        (
            "model",
            lambda m: step(
                m, np.ones((8, 3, 5), "float32"), np.ones((8, 2), "float32")
            ),
            ValueError,
            r"'lstm\w*'.*batch size 8.*Build it with batch_size=1",
        ),
    ),
    "fixed_batch_size_inside": (
        _stateful_inside,
        (
            "model",
            lambda m: m.fit(np.ones((8, 3, 5)), np.ones((8, 2)), verbose=0),
            ValueError,
            "layer 'remembers'.*batch size 8.*Build it with batch_size=1",
        ),
    ),
    "operation_of_fixed_size": (
        _reshaped,
        ("model", fit, ValueError, "operation 'reshape.*batch size 8.*Build it with"),
    ),
    "constant_of_fixed_size": (
        _enlarged,
        ("model", fit, ValueError, "operation 'add.*batch size 8.*Build it with"),
    ),
    "assigned_inside": (
        lambda: keras.Sequential([keras.Input((5,)), AssignsInBranch()]),
        ("assigned_inside", fit, NotImplementedError, "run_eagerly=True"),
    ),
    "no_gradients": (
        _unconnected,
        ("no_gradients", fit, ValueError, r"Check `loss` in compile\(\)"),
    ),
    "undeclared_state": (
        _forgetful,
        ("undeclared_state", fit, RuntimeError, "Create them in __init__ or build"),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)


def test_stateful_model_of_batch_size_one_works(engagements: list[str]) -> None:
    model = compiled(_stateful(1))
    x, y = np.ones((4, 3, 5)), np.ones((4, 2))
    model.fit(x, y, batch_size=4, verbose=0)
    assert set(engagements) == {model.name}
    assert int(model.optimizer.iterations) == 4


def test_fixed_batch_size_works_in_groups_of_it(engagements: list[str]) -> None:
    model = compiled(_stateful(8), plus={"examples_per_update": 8})
    x, y = np.ones((16, 3, 5)), np.ones((16, 2))
    model.fit(x, y, batch_size=16, verbose=0)
    assert set(engagements) == {model.name}
    assert int(model.optimizer.iterations) == 2


def _lonely_norm(norm: Any = None) -> Any:
    norm = layers.BatchNormalization(name="lonely") if norm is None else norm
    return keras.Sequential([keras.Input((5,)), norm, layers.Dense(2)])


def _spatial_norm(kind: Any = layers.BatchNormalization) -> Any:
    norm, flat = kind(name="wide"), layers.Flatten()
    shape = layers.Reshape((5, 1))
    return keras.Sequential([keras.Input((5,)), shape, norm, flat, layers.Dense(2)])


def _frozen(make: Callable[[], Any], name: str) -> Callable[[], Any]:
    def frozen() -> Any:
        model = make()
        model.get_layer(name).trainable = False
        return model

    return frozen


class Nested(keras.Model):
    """Its layer cannot be seen in a graph of layers.

    `for_training=False` is as in transfer learning: a part keeps its statistics.
    """

    def __init__(self, for_training: bool = True) -> None:
        super().__init__()
        self.part, self.for_training = _spatial_norm(), for_training

    def call(self, x: Any, training: bool = False) -> Any:
        return self.part(x, training=training and self.for_training)


class OwnNorm(layers.BatchNormalization):
    """A subclass, as users write them."""


def _fit_twice(model: Any, **kwargs: Any) -> None:
    fit(model, batch_size=3, **kwargs)
    fit(model, batch_size=4, epochs=2, **kwargs)  # traced anew, twice


NORM = "Replace it with LayerNormalization or GroupNormalization"
WORSE = "evaluate may be far worse than the log"


def test_lonely_batch_normalization_warns_once() -> None:
    model = compiled(_lonely_norm())
    texts = caught_by(lambda: _fit_twice(model), NORM)
    assert len(texts) == 1
    assert "'lonely'" in texts[0] and "output a constant" in texts[0]
    assert "layer.trainable = False" in texts[0]
    assert "examples_per_update=16" in texts[0] and WORSE not in texts[0]


@pytest.mark.parametrize(
    "make",
    [_spatial_norm, *matrix(lambda: _spatial_norm(OwnNorm), Nested)],
    ids=["plain", "subclass", "nested"],
)
def test_spatial_batch_normalization_warns_once(make: Callable[[], Any]) -> None:
    model = compiled(make())
    texts = caught_by(lambda: _fit_twice(model), NORM)
    assert len(texts) == 1
    assert "'wide'" in texts[0] and WORSE in texts[0]


def test_both_kinds_of_batch_normalization_warn_apart() -> None:
    model = keras.Sequential([_spatial_norm(), layers.BatchNormalization()])
    texts = caught_by(lambda: fit(compiled(model)), NORM)
    assert sorted(WORSE in text for text in texts) == [False, True]


@pytest.mark.parametrize(
    ("make", "plus"),
    [
        (_frozen(_lonely_norm, "lonely"), {}),
        *matrix_rows(
            (_frozen(_lonely_norm, "lonely"), {"jit_compile": "auto"}),
            (_frozen(_lonely_norm, "lonely"), {"nonfinite": "skip"}),
            (_frozen(_spatial_norm, "wide"), {}),
            (lambda: Nested(for_training=False), {}),
            (lambda: _lonely_norm(layers.LayerNormalization()), {}),
            (lambda: _lonely_norm(layers.GroupNormalization(1)), {}),
            (lambda: _lonely_norm(layers.Normalization(mean=0, variance=1)), {}),
        ),
        (_lonely_norm, {"examples_per_update": 3}),
        *matrix_rows(
            (_spatial_norm, {"examples_per_update": 3}),
            (_lonely_norm, {"examples_per_update": None}),
        ),
    ],
    ids=[
        "frozen",
        "frozen_xla",
        "frozen_skip",
        "frozen_spatial",
        "inference",
        "layer_norm",
        "group_norm",
        "scaling",
        "groups",
        "spatial_groups",
        "stock",
    ],
)
def test_other_normalization_is_silent(
    make: Callable[[], Any], plus: dict[str, Any]
) -> None:
    model = compiled(make(), plus=plus)
    assert caught_by(lambda: fit(model), NORM) == []
    assert int(model.optimizer.iterations) > 0


def _weighted_mean() -> Any:
    return keras.losses.MeanSquaredError(
        reduction="mean_with_sample_weight", name="odd"
    )


REDUCTION = 'Use reduction="sum_over_batch_size"'


def test_vanishing_sample_weights_warn_once() -> None:
    model = compiled(loss=_weighted_mean())
    texts = caught_by(lambda: _fit_twice(model, sample_weight=WEIGHTS), REDUCTION)
    assert len(texts) == 1
    assert "'odd'" in texts[0]


@pytest.mark.parametrize(
    ("loss", "weights"),
    [(_weighted_mean(), None), (keras.losses.MeanSquaredError(), WEIGHTS)],
    ids=["no_weights", "default_reduction"],
)
def test_sample_weights_that_count_are_silent(loss: Any, weights: Any) -> None:
    model = compiled(loss=loss)
    assert caught_by(lambda: fit(model, sample_weight=weights), REDUCTION) == []


def test_missing_gradients_warn_as_keras_does() -> None:
    model = compiled(_partly_connected())
    before = model.get_weights()
    texts = caught_by(lambda: fit(model), "do not exist for variables")
    assert texts
    assert all("check `loss` in compile()" in text for text in texts)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(before, model.get_weights(), strict=True)
    ]
    assert moved == [True, True, False, False]
