"""The README's Python blocks run as written, and its numbers are true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests.support.blocks import blocks_of, printed_and_said
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = blocks_of(README)
BLOCKS = [block for block in PYTHON if "import keras" in block]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(
    block: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines, said = printed_and_said(block, tmp_path, capsys)
    assert lines[len(lines) - len(said) :] == said  # fit prints before them


def test_the_loop_is_what_is_computed() -> None:
    """The block that imports nothing trains a linear model as SGDPlus does."""
    (block,) = [block for block in PYTHON if block not in BLOCKS]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    y = x.sum(axis=1, keepdims=True)
    names: dict[str, Any] = {
        "batch": list(zip(x, y[:, 0], strict=True)),
        "model": lambda x_i: (x_i, x_i @ names["w"]),
        "loss": lambda found, y_i: (found[0], found[1] - y_i),  # and its x
        "gradient": lambda found, w: 2 * found[0] * found[1],
        "w": np.zeros(4),
        "v": np.zeros(4),
        "momentum": 0.5,
        "learning_rate": 0.02,
    }
    exec(block, names)
    keras.config.set_floatx("float64")  # or fit rounds the data, Keras the rate
    keras.config.set_dtype_policy("float64")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(SGDPlus(0.02, momentum=0.5, order="given"), "mse")
    model.fit(x, y, batch_size=30, shuffle=False, verbose=0)
    np.testing.assert_allclose(layer.get_weights()[0][:, 0], names["w"], rtol=1e-12)


def test_the_change_trains_per_example(capsys: pytest.CaptureFixture) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    lines = {sign: _lines(diff, sign) for sign in "-+"}
    x = np.random.default_rng(0).normal(size=(96, 3)).astype("float32")
    updates = {}
    for sign, code in lines.items():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        exec(code, {"keras": keras, "model": model, "x": x, "y": x[:, :1]})
        updates[sign] = int(model.optimizer.iterations)
    assert updates == {"-": 10 * 96 // 32, "+": 10 * 96}
    assert "Found learning_rate=" in capsys.readouterr().out


def _lines(diff: str, sign: str) -> str:
    lines = [line[1:] for line in diff.splitlines() if line.startswith(sign)]
    assert len(lines) == {"-": 2, "+": 3}[sign]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("SGDPlus", "2000\n"),
        ("AverageWeights", "True\n"),
        ("ExactResume", ""),
        ("ExampleLog", "(5, 1000) 7\n"),
        ("SeededArrays", "3 (4, 1)\n"),
    ],
)
def test_docstring_example_runs(
    name: str,
    printed: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras_sgd_plus

    documented = getattr(keras_sgd_plus, name).__doc__ or ""
    (block,) = re.findall(
        r"Example:\n\n\s+```python\n(.*?)```", documented, flags=re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text("\n".join(line[4:] for line in block.splitlines()))
    runpy.run_path(str(script))
    assert printed in capsys.readouterr().out
