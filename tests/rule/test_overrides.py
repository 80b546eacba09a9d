"""A method of the update that somebody has replaced is refused, not ignored."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.internals import keras_optimizer
from tests.support.messages import (
    ErrorRow,
    Row,
    X,
    Y,
    assert_refused,
    error_rows,
    fit,
)
from tests.support.twins import linear_model

LossScale = keras.optimizers.LossScaleOptimizer
METHODS = [n for n in keras_optimizer.UPDATE_METHODS if hasattr(SGDPlus, n)]
SCALED = [n for n in keras_optimizer.SCALED_UPDATE_METHODS if hasattr(LossScale, n)]


def _wrapped(optimizer: Any, name: str) -> Any:
    """The optimizer, with a method put on it that only calls the original."""
    original = getattr(optimizer, name)
    setattr(optimizer, name, lambda *args, **kwargs: original(*args, **kwargs))
    return optimizer


def _subclass(base: type, name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(base, name)(self, *args, **kwargs)

    return type("OwnRule", (base,), {name: method})


def _makers() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for name in METHODS:
        found[f"object-{name}"] = lambda name=name: _wrapped(SGDPlus(0.1), name)
        found[f"class-{name}"] = lambda name=name: _subclass(SGDPlus, name)(0.1)
    for name in SCALED:
        scaled = _subclass(LossScale, name)
        found[f"scaled-{name}"] = lambda s=scaled: s(SGDPlus(0.1))
        found[f"scaled-object-{name}"] = lambda name=name: _wrapped(
            LossScale(SGDPlus(0.1)), name
        )
    found["inside-scaled"] = lambda: LossScale(_wrapped(SGDPlus(0.1), "apply"))
    return found


MAKERS = _makers()


@pytest.mark.parametrize("made", MAKERS)
def test_replaced_methods_are_refused(made: str) -> None:
    name = made.split("-")[-1].replace("scaled", "apply")
    model = linear_model()
    model.compile(MAKERS[made](), "mse", run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(NotImplementedError, match=f"{name}'.*examples_per_update=None"):
        model.train_on_batch(X, Y)
    with pytest.raises(NotImplementedError, match=f"{name}'"):
        model.fit(X, Y, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["apply", "update_step"])
def test_a_method_replaced_on_a_class_of_keras_is_refused(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = SGDPlus if method == "apply" else keras.optimizers.SGD
    monkeypatch.setattr(owner, method, lambda *args, **kwargs: None)
    model = linear_model()
    model.compile(SGDPlus(0.1), "mse", run_eagerly=True)
    with pytest.raises(NotImplementedError, match=method):
        model.train_on_batch(X, Y)


@pytest.mark.parametrize("where", ["object", "inside_scaled", "scaled"])
@pytest.mark.parametrize("when", ["between", "inside"])
def test_a_hook_put_on_a_live_optimizer_is_refused(when: str, where: str) -> None:
    model = linear_model()
    optimizer = SGDPlus(0.1, jit_compile=False)
    outer = optimizer if where == "object" else LossScale(optimizer)
    model.compile(outer, "mse")
    model.fit(X, Y, batch_size=3, verbose=0)

    def hook(batch: int, logs: Any) -> None:
        if when == "inside":
            _wrapped(outer if where == "scaled" else optimizer, "apply")

    if when == "between":
        _wrapped(outer if where == "scaled" else optimizer, "apply")
    note = keras.callbacks.LambdaCallback(on_train_batch_end=hook)
    with pytest.raises(NotImplementedError, match="its own 'apply'"):
        model.fit(X, Y, batch_size=3, verbose=0, callbacks=[note])
    assert int(optimizer.iterations) == (6 if when == "between" else 9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: copy.deepcopy(SGDPlus(0.1)),
        lambda: pickle.loads(pickle.dumps(SGDPlus(0.1))),
        lambda: SGDPlus.from_config(SGDPlus(0.1).get_config()),
        lambda: LossScale(SGDPlus(0.1)),
        lambda: type("Own", (SGDPlus,), {"note": lambda self: 1})(0.1),
        lambda: _wrapped(SGDPlus(0.1, examples_per_update=None), "apply"),
    ],
    ids=["copied", "pickled", "from_config", "scaled", "subclass", "stock"],
)
def test_other_optimizers_train(make: Callable[[], Any]) -> None:
    model = linear_model()
    model.compile(make(), "mse", run_eagerly=True)
    model.optimizer.note_of_mine = len  # an attribute that is no method of the update
    model.train_on_batch(X, Y)
    assert int(model.optimizer.iterations) > 0


def _fit_subclass(model: Any) -> None:
    model.compile(_subclass(SGDPlus, "update_step")(), "mse")
    fit(model)


ERRORS: dict[str, ErrorRow] = {
    "overridden": (
        linear_model,
        ("overridden", _fit_subclass, NotImplementedError, "examples_per_update=None"),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)
