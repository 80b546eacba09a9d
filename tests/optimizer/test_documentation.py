"""`help()` answers a first user: each argument has type, unit, default and error."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_sgd_plus
from keras_sgd_plus import (
    AverageWeights,
    ExactResume,
    ExampleLog,
    LinearDecay,
    SeededArrays,
    SGDPlus,
    find_learning_rate,
)

_NO = inspect.Parameter.empty
DOCUMENTED: list[tuple[Any, Any]] = [  # a callable, and the object that documents it
    (SGDPlus.__init__, SGDPlus),
    (SGDPlus.train_step, SGDPlus.train_step),
    (AverageWeights.__init__, AverageWeights),
    (ExactResume.__init__, ExactResume),
    (ExampleLog.__init__, ExampleLog),
    (LinearDecay.__init__, LinearDecay),
    (find_learning_rate, find_learning_rate),
    (SeededArrays.__init__, SeededArrays),
]
# How a text names the type of an argument; and the unit of each number.
TYPES = r"Float|Int|Bool|String|Str\b|Array|`\"|What|A `keras.Model`|`x`|The same"
UNITS = {
    "learning_rate": "per update",
    "momentum": "part of the velocity",
    "weight_decay": "each update",
    "clipnorm": "Euclidean norm",
    "clipvalue": "Elements of each gradient",
    "global_clipnorm": "Euclidean norm",
    "ema_momentum": "part of the average",
    "ema_overwrite_frequency": "updates",
    "loss_scale_factor": "The loss is multiplied by it",
    "gradient_accumulation_steps": "examples",
    "examples_per_update": "examples",
    "start_epoch": "counted from 0",
    "to": "rate",
    "num_batches": "batches of an epoch",
    "lowest": "candidates",
    "highest": "upwards",
    "num_examples": "Each candidate visits",
    "save_freq": "batches",
    "max_to_keep": "saves",
    "batch_size": "examples",
    "seed": "order|draw",
    "max_loss_fraction": "fraction of its own loss",
}
Wrong = tuple[Callable[[], Any], type[Exception]]


def _sgd(**arguments: Any) -> Callable[[], Any]:
    return lambda: SGDPlus(**arguments)


def _arrays(*arrays: Any, **arguments: Any) -> Callable[[], Any]:
    return lambda: SeededArrays(*arrays, **arguments)


def _log(**arguments: Any) -> Callable[[], Any]:
    return lambda: ExampleLog(**arguments)


def _find(**arguments: Any) -> Callable[[], Any]:
    def find() -> Any:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(SGDPlus(), "mse")
        return find_learning_rate(**{"model": model, "x": ROWS, "y": ROWS, **arguments})

    return find


ROWS = np.zeros((100, 1))
X = np.zeros((4, 1))
# A wrong value of every argument, and the class of its error.
WRONG: dict[tuple[Any, str], Wrong] = {
    (SGDPlus, "learning_rate"): (_sgd(learning_rate=float("nan")), ValueError),
    (SGDPlus, "momentum"): (_sgd(momentum=1.5), ValueError),
    (SGDPlus, "nesterov"): (_sgd(nesterov=np.array([1, 0])), TypeError),
    (SGDPlus, "weight_decay"): (_sgd(weight_decay=float("nan")), ValueError),
    (SGDPlus, "clipnorm"): (_sgd(clipnorm=float("inf")), ValueError),
    (SGDPlus, "clipvalue"): (_sgd(clipvalue="1"), TypeError),
    (SGDPlus, "global_clipnorm"): (_sgd(global_clipnorm=1.0, clipnorm=1.0), ValueError),
    (SGDPlus, "use_ema"): (_sgd(use_ema=np.array([1, 0])), TypeError),
    (SGDPlus, "ema_momentum"): (_sgd(use_ema=True, ema_momentum=2.0), ValueError),
    (SGDPlus, "ema_overwrite_frequency"): (
        _sgd(use_ema=True, ema_overwrite_frequency=-1),
        ValueError,
    ),
    (SGDPlus, "loss_scale_factor"): (_sgd(loss_scale_factor=0.0), ValueError),
    (SGDPlus, "gradient_accumulation_steps"): (
        _sgd(gradient_accumulation_steps=1),
        ValueError,
    ),
    (SGDPlus, "name"): (_sgd(name="a/b"), ValueError),
    (SGDPlus, "examples_per_update"): (_sgd(examples_per_update=0), ValueError),
    (SGDPlus, "order"): (_sgd(order="sorted"), ValueError),
    (SGDPlus, "seed"): (_sgd(seed=-1), ValueError),
    (SGDPlus, "nonfinite"): (_sgd(nonfinite="ignore"), ValueError),
    (SGDPlus, "jit_compile"): (_sgd(jit_compile="never"), ValueError),
    (AverageWeights, "start_epoch"): (lambda: AverageWeights(-1), ValueError),
    (SGDPlus, "max_loss_fraction"): (_sgd(max_loss_fraction=2.0), ValueError),
    (ExactResume, "directory"): (lambda: ExactResume(3), TypeError),
    (ExactResume, "save_freq"): (lambda: ExactResume("run", 0), ValueError),
    (ExactResume, "max_to_keep"): (
        lambda: ExactResume("run", max_to_keep=0),
        ValueError,
    ),
    (ExampleLog, "gradient_norm"): (_log(gradient_norm=1), TypeError),
    (ExampleLog, "prediction"): (_log(prediction="all"), TypeError),
    (ExampleLog, "id"): (_log(id=1.5), TypeError),
    (ExampleLog, "path"): (_log(path=7), TypeError),
    (LinearDecay, "to"): (lambda: LinearDecay(-1.0), ValueError),
    (LinearDecay, "start_epoch"): (lambda: LinearDecay(start_epoch=-1), ValueError),
    (LinearDecay, "num_batches"): (lambda: LinearDecay(num_batches=0), ValueError),
    (find_learning_rate, "model"): (_find(model=keras.Sequential()), TypeError),
    (find_learning_rate, "x"): (_find(x=iter([1])), ValueError),
    (find_learning_rate, "y"): (_find(y=X), ValueError),
    (find_learning_rate, "batch_size"): (_find(batch_size=0), ValueError),
    (find_learning_rate, "sample_weight"): (_find(sample_weight=X), ValueError),
    (find_learning_rate, "class_weight"): (_find(class_weight=3), TypeError),
    (find_learning_rate, "lowest"): (_find(lowest="low"), TypeError),
    (find_learning_rate, "highest"): (_find(highest=1e9), ValueError),
    (find_learning_rate, "num_examples"): (_find(num_examples=0), ValueError),
    (find_learning_rate, "order"): (_find(order="sorted"), ValueError),
    (find_learning_rate, "seed"): (_find(seed=-1), ValueError),
    (find_learning_rate, "set_rate"): (_find(set_rate="yes"), TypeError),
    (find_learning_rate, "verbose"): (_find(verbose="loud"), ValueError),
    (SeededArrays, "x"): (_arrays(None), ValueError),
    (SeededArrays, "y"): (_arrays(X, X[:2]), ValueError),
    (SeededArrays, "sample_weight"): (_arrays(X, X, X[:2]), ValueError),
    (SeededArrays, "batch_size"): (_arrays(X, batch_size=0), ValueError),
    (SeededArrays, "seed"): (_arrays(X, seed="one"), TypeError),
}


def _section(documented: Any, name: str) -> str:
    text = inspect.getdoc(documented) or ""
    found = re.search(rf"^{name}:\n(.*?)(?=^\S|\Z)", text, flags=re.M | re.S)
    assert found, f"{documented} has no section {name}"
    return found[1]


def _entries(section: str) -> dict[str, str]:
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section, flags=re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _parameters(called: Any) -> list[inspect.Parameter]:
    parameters = inspect.signature(called).parameters.values()
    return [p for p in parameters if p.name != "self" and p.kind != p.VAR_KEYWORD]


CASES = [
    pytest.param(documented, parameter, id=f"{documented.__name__}-{parameter.name}")
    for called, documented in DOCUMENTED
    for parameter in _parameters(called)
]


@pytest.mark.parametrize(("documented", "parameter"), CASES)
def test_argument_has_type_unit_and_default(
    documented: Any, parameter: inspect.Parameter
) -> None:
    text = _entries(_section(documented, "Args"))[parameter.name]
    assert re.match(TYPES, text), text
    if re.match("Float|Int", text) or parameter.annotation in ("int", "float"):
        assert re.search(UNITS[parameter.name], text)
    defaults = re.findall(r"Defaults to `([^`]*)`", text)
    if parameter.default is _NO:
        assert defaults == []
    else:
        (default,) = defaults
        assert default == repr(parameter.default).replace("'", '"')


@pytest.mark.parametrize(("called", "documented"), DOCUMENTED)
def test_arguments_stand_in_their_order(called: Any, documented: Any) -> None:
    names = [parameter.name for parameter in _parameters(called)]
    assert list(_entries(_section(documented, "Args"))) == names


@pytest.mark.parametrize(
    ("owner", "name"), WRONG, ids=[f"{o.__name__}-{n}" for o, n in WRONG]
)
def test_error_of_an_argument_is_documented(owner: Any, name: str) -> None:
    wrong, error = WRONG[owner, name]
    with pytest.raises(error):
        wrong()
    raises = _entries(_section(owner, "Raises"))
    assert f"`{name}`" in raises[error.__name__]


def test_every_argument_has_a_wrong_value() -> None:
    cases = [case.values for case in CASES]
    named = {(o, p.name) for o, p in cases if o is not SGDPlus.train_step}
    assert named == set(WRONG)


@pytest.mark.parametrize("name", [n for n in keras_sgd_plus.__all__ if n[0] != "_"])
def test_public_methods_are_documented(name: str) -> None:
    public = getattr(keras_sgd_plus, name)
    own = [m for n, m in vars(public).items() if inspect.isfunction(m) and n[0] != "_"]
    assert [m.__name__ for m in own if not m.__doc__] == []
