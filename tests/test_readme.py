"""The README's Python blocks run as written, and its commands are the two it names."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_sgd_plus import SGDPlus
from tests import test_live, test_nonfinite, test_resume, test_tables
from tests.support.zoo import ZOO

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
BLOCKS = [block for block in PYTHON if "import keras" in block]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:Every loss and gradient should be finite")
def test_block_runs(
    block: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text(block)
    if "tf.distribute" in block:  # for the devices of a user, not those of the tests
        run = [sys.executable, str(script)]
        printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    else:
        runpy.run_path(str(script))
        printed = capsys.readouterr().out
    expected = re.findall(r"^print\(.*\)  # (\S+?)(?::? .*)?$", block, flags=re.M)
    assert len(expected) == len(re.findall(r"^\s*print\(", block, flags=re.M))
    lines = printed.splitlines()
    assert lines[len(lines) - len(expected) :] == expected


def test_the_loop_is_what_is_computed() -> None:
    """The one block that imports nothing, on a linear model, beside SGDPlus."""
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
    keras.config.set_floatx("float64")  # else fit rounds the data, Keras the rate
    keras.config.set_dtype_policy("float64")
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(SGDPlus(0.02, momentum=0.5, order="given"), "mse")
    model.fit(x, y, batch_size=30, shuffle=False, verbose=0)
    np.testing.assert_allclose(layer.get_weights()[0][:, 0], names["w"], rtol=1e-12)


def test_statements_that_rest_on_tables() -> None:
    """Counts and factors in the text, against the table that they are taken from."""
    details = (ROOT / "benchmarks" / "README.md").read_text()
    equality = details[details.index("## equality") : details.index("## quick")]
    rows = re.findall(r"^\| (\w+) +\| (yes|no) ", equality, flags=re.M)
    equal = [name for name, same in rows if same == "yes"]
    assert f"{len(equal)} of the {len(rows)} models are equal" in README
    others = ", ".join(f"`{name}`" for name, same in rows if same == "no")
    assert f"(all but {others})" in " ".join(README.split())


def test_counts_of_what_is_promised() -> None:
    counted = {
        "{} kinds of model, every option of SGD": len(ZOO),
        "{} kinds of model and options, groups": len(test_nonfinite.CASES),
        "{} times SIGKILL": test_resume.NUM_KILLS,
        "{} kinds of wrong data": len(test_resume.REFUSED),
        "{} models and options for 500 updates": len(test_tables.CASES),
    }
    said = {text: text.format(number) in README for text, number in counted.items()}
    assert all(said.values()), said
    assert len(test_live.CHANGES) == 10
    assert "ten settings, changed between fits" in README
    assert test_tables.UPDATES == 500


def test_there_are_blocks_and_two_commands() -> None:
    assert len(BLOCKS) == 7
    commands = re.findall(r"^python -m pip install -e .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert all(" && " in command for command in commands)


@pytest.mark.parametrize(
    ("name", "printed"),
    [("SGDPlus", "2000\n"), ("ExactResume", ""), ("SeededArrays", "3 (4, 1)\n")],
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
