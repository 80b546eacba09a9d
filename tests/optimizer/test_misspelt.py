"""An argument that SGDPlus does not have raises an error that names the right one."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any, Literal

import pytest

from keras_sgd_plus import SGDPlus

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.1}, "Received: lr=0.1. Write learning_rate=0.1."),
    ({"learning_rates": 0.1}, "Write learning_rate=0.1."),
    ({"Learning_Rate": 0.1}, "Write learning_rate=0.1."),
    ({"momemtum": 0.9}, "Write momentum=0.9."),
    ({"clip_norm": 1.0}, "Write clipnorm=1.0."),
    ({"nestrov": True}, "Write nesterov=True."),
    ({"example_per_update": 4}, "Write examples_per_update=4."),
    ({"Order": "given"}, "Write order='given'."),
    ({"jit": False}, "Write jit_compile=False."),
    ({"random_state": 1}, "Write seed=1."),
    ({"decay": 0.1}, "schedules.InverseTimeDecay(0.01, 1, 0.1) for the decay"),
    ({"shuffle": False}, 'Write order="given"'),
    ({"batch_size": 32}, "Write fit(batch_size=32), or examples_per_update=32"),
    ({"beta_1": 0.9}, "Leave beta_1 out: the arguments are learning_rate, momentum,"),
    (
        {"lr": 0.1, "momemtum": 0.9},
        "Received: lr=0.1, momemtum=0.9. Write learning_rate=0.1. Write momentum=0.9.",
    ),
]


@pytest.mark.parametrize(("arguments", "fix"), ARGUMENTS, ids=lambda value: str(value))
def test_argument(arguments: dict[str, Any], fix: str) -> None:
    with pytest.raises(TypeError, match=re.escape(fix)):
        SGDPlus(**arguments)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(TypeError, match="Write learning_rate=") as raised:
        SGDPlus(lr=list(range(1000)))
    assert len(str(raised.value)) < 600


def test_old_name_of_a_setting() -> None:
    optimizer: Any = SGDPlus(0.1)
    fix = "Received: lr=0.2. Write optimizer.learning_rate = 0.2."
    with pytest.raises(AttributeError, match=re.escape(fix)):
        optimizer.lr = 0.2
    assert not hasattr(optimizer, "lr")
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


METHODS = {
    "minimize": "Write model.fit(x, y), or optimizer.train_step(model, (x, y)).",
    "step": "Write model.fit(x, y), or optimizer.train_step(model, (x, y)).",
    "zero_grad": "Leave it out: gradients are made anew for each example.",
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_other_optimizers(name: str) -> None:
    text = f"Received: .{name}. {METHODS[name]}"
    with pytest.raises(AttributeError, match=re.escape(text)):
        getattr(SGDPlus(), name)
    assert not hasattr(SGDPlus(), name)
    assert name not in dir(SGDPlus())


def test_other_attributes_have_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="'SGDPlus' object has no attribute 'foo'"):
        getattr(SGDPlus(), "foo")  # noqa: B009


def test_tools_see_the_arguments() -> None:
    parameters = inspect.signature(SGDPlus).parameters
    assert "kwargs" not in parameters
    hints = typing.get_type_hints(SGDPlus.__init__)
    assert hints["order"] == Literal["reshuffle", "given"]
    assert hints["nonfinite"] == Literal["propagate", "skip", "raise"]
    assert hints["jit_compile"] == bool | Literal["auto"]
