"""Files run no code, and training touches only what the user names."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.paths import ROOT


def _saved(path: Path) -> Path:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(SGDPlus(0.01, momentum=0.9), "mse")
    model.save(path)
    return path


def _altered(path: Path, alter: Callable[[dict[str, Any]], None]) -> Path:
    """The same file with another optimizer's configuration in it."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    optimizer = config["compile_config"]["optimizer"]
    assert optimizer["registered_name"] == "keras_sgd_plus>SGDPlus"
    alter(optimizer)
    parts["config.json"] = json.dumps(config).encode()
    other = path.with_name("altered.keras")
    with zipfile.ZipFile(other, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return other


def _lambda(mark: Path) -> Any:
    """The config of a Lambda layer, which holds code."""

    del mark
    return keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: x))


def _function(mark: Path) -> dict[str, Any]:
    del mark
    return {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }


def _call(mark: Path) -> dict[str, Any]:
    return {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["touch", str(mark)]},
        "registered_name": None,
    }


@pytest.mark.parametrize("argument", ["learning_rate", "seed", "name", "momentum"])
@pytest.mark.parametrize("payload", [_lambda, _function, _call])
def test_no_code_from_a_file(
    argument: str, payload: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    mark = tmp_path / "executed"

    def alter(optimizer: dict[str, Any]) -> None:
        optimizer["config"][argument] = payload(mark)

    path = _altered(_saved(tmp_path / "m.keras"), alter)
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path)
    assert not mark.exists()


@pytest.mark.parametrize("payload", [_function, _call])
def test_no_other_class_in_place_of_the_optimizer(
    payload: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    path = _altered(_saved(tmp_path / "m.keras"), lambda o: o.update(payload(mark)))
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path)
    assert not mark.exists()


MALFORMED: dict[str, tuple[str, Any, str]] = {
    "order": ("order", "shuffle", "`order` must be"),
    "nonfinite": ("nonfinite", "ignore", "`nonfinite` must be"),
    "k": ("examples_per_update", 0, "`examples_per_update` must be"),
    "seed": ("seed", "abc", "`seed` must be"),
    "momentum": ("momentum", 7.0, "momentum"),
    "unknown": ("surprise", 1, "surprise"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_config_is_named(name: str, tmp_path: Path) -> None:
    argument, value, text = MALFORMED[name]

    def alter(optimizer: dict[str, Any]) -> None:
        optimizer["config"][argument] = value

    path = _altered(_saved(tmp_path / "m.keras"), alter)
    with pytest.raises((TypeError, ValueError), match=text):
        keras.models.load_model(path)


_AUDITED = """
import os, sys
import keras, numpy as np
import keras_sgd_plus
from keras_sgd_plus import ExactResume, ExampleLog, SGDPlus

keras.random.uniform((2,))  # TensorFlow looks at the machine when it first computes
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def hook(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.system"):
        seen.append(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        seen.append(f"open {arguments[0]}")

sys.addaudithook(hook)
before = dict(os.environ)
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
model.compile(SGDPlus(0.01, momentum=0.9, nonfinite="skip"), "mse")
x = np.ones((20, 5), "float32")
model.fit(x, x[:, :2], shuffle=False, verbose=0, callbacks=CALLBACKS)
after = dict(os.environ)
changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
print("CHANGED", sorted(changed))
print("SEEN", sorted(set(seen)))
open("canary", "w").close()
print("CANARY", len(seen) > 0)
"""


@pytest.mark.matrix
@pytest.mark.parametrize(
    "callbacks", ["[]", "[ExactResume('named')]", "[ExampleLog(path='named')]"]
)
def test_training_leaves_the_machine_alone(callbacks: str, tmp_path: Path) -> None:
    """The directory shows files that TensorFlow writes in C++, past the hook."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _AUDITED.replace("CALLBACKS", callbacks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "CHANGED ['XLA_FLAGS']" in lines
    (seen,) = [line.removeprefix("SEEN ") for line in lines if line.startswith("SEEN ")]
    if "ExampleLog" in callbacks:  # it writes from Python, so the hook sees it
        assert all(each.startswith("open named/") for each in ast.literal_eval(seen))
    else:
        assert seen == "[]"
    assert "CANARY True" in lines  # the hook does see what is written
    names = {path.name for path in tmp_path.iterdir()} - {"canary"}
    assert names == ({"named"} if "named" in callbacks else set())
