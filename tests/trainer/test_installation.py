"""SGDPlus installs the hook once; without the hook Keras is as it was."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import hooks, keras_trainer
from tests.support.messages import (
    ErrorRow,
    Row,
    assert_refused,
    error_rows,
)
from tests.support.paths import ROOT
from tests.support.twins import linear_model

TRAINER = keras_trainer.trainer_methods()["train_step"]
_IMPORT = """
import os
import keras

def patched():
    # All but one method, which registers the class before a model is loaded.
    return [{k: v for k, v in vars(c).items() if k != "compile_from_config"}
            for c in (*keras.Model.__mro__, *keras.optimizers.SGD.__mro__)
            if c.__module__.startswith("keras")]

before, flags = patched(), os.environ.get("XLA_FLAGS")
from keras_sgd_plus import SGDPlus
assert patched() == before, "import alone altered Keras"
assert os.environ.get("XLA_FLAGS") == flags, "import alone set XLA_FLAGS"
stock = SGDPlus(examples_per_update=None)
assert patched() != before, "SGDPlus altered nothing"
assert os.environ.get("XLA_FLAGS") == flags, "a stock SGDPlus set XLA_FLAGS"
after = patched()
stock.examples_per_update, stock.order, stock.momentum = 1, "given", 0.5
assert patched() == after, "a setting altered Keras"
SGDPlus()
assert patched() == after
assert "xla_cpu_small_while_loop_byte_threshold" in os.environ["XLA_FLAGS"]
"""


@pytest.mark.matrix
def test_import_alone_changes_nothing() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_install_twice_wraps_once() -> None:
    wrapped = vars(TRAINER)["train_step"]
    hooks.install()
    SGDPlus()
    assert vars(TRAINER)["train_step"] is wrapped
    assert not hasattr(getattr(wrapped, hooks._MARK), hooks._MARK)


def test_uninstall_restores_and_construction_installs() -> None:
    original = getattr(vars(TRAINER)["train_step"], hooks._MARK)
    hooks.uninstall()
    assert vars(TRAINER)["train_step"] is original
    hooks.uninstall()
    assert vars(TRAINER)["train_step"] is original
    SGDPlus(examples_per_update=None)  # may step per example later
    assert getattr(vars(TRAINER)["train_step"], hooks._MARK) is original


def test_a_setting_installs_nothing() -> None:
    optimizer = SGDPlus(examples_per_update=None)
    hooks.uninstall()
    original = vars(TRAINER)["train_step"]
    optimizer.examples_per_update, optimizer.nonfinite = 2, "skip"
    assert vars(TRAINER)["train_step"] is original


def test_wrapper_looks_like_the_original() -> None:
    wrapped = vars(TRAINER)["train_step"]
    original = getattr(wrapped, hooks._MARK)
    assert wrapped.__name__ == "train_step"
    assert inspect.signature(wrapped) == inspect.signature(original)


def test_unknown_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(self: Any, data: Any, more: Any) -> None:
        del self, data, more

    monkeypatch.setattr(TRAINER, "train_step", train_step)
    with pytest.raises(RuntimeError, match=r"train_step\(self: .*more: .*version"):
        SGDPlus()
    assert vars(TRAINER)["train_step"] is train_step


def test_a_missing_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks.uninstall()
    monkeypatch.delattr(TRAINER, "make_train_function")
    base = keras.Model.__mro__[keras.Model.__mro__.index(TRAINER) + 1]
    monkeypatch.delattr(base, "make_train_function", raising=False)
    with pytest.raises(RuntimeError) as raised:
        SGDPlus()
    text = str(raised.value)
    assert "needs make_train_function(self, force) of Keras's trainer" in text
    assert f"Keras {keras.__version__} and TensorFlow {tf.__version__}, which" in text
    assert (
        f"do not have it. Install versions that have it: {keras_trainer.INSTALL}"
        in text
    )


def test_the_versions_to_install_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [text for text in project["dependencies"] if "numpy" not in text]
    quoted = " ".join(f'"{text}"' for text in sorted(bounds))
    assert f"pip install {quoted}" == keras_trainer.INSTALL


def _other_signature(model: Any) -> None:
    del model
    with pytest.MonkeyPatch.context() as patch:
        owner = keras_trainer.trainer_methods()["train_step"]
        patch.setattr(owner, "train_step", lambda self: None)
        SGDPlus()


ERRORS: dict[str, ErrorRow] = {
    "unknown_signature": (
        linear_model,
        (
            "unknown_signature",
            _other_signature,
            RuntimeError,
            r"Received: .* have train_step\(self\).*Install versions",
        ),
    ),
}


@pytest.mark.parametrize(("make", "row"), error_rows(ERRORS))
def test_error(make: Callable[[], Any], row: Row) -> None:
    assert_refused(make, row)
