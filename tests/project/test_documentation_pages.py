"""The pages under `docs/` name what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.support.internals import keras_backend, keras_trainer
from tests.support.paths import ROOT

INSIDE = (ROOT / "docs" / "inside.md").read_text()
PRIVATE = ROOT / "keras_sgd_plus" / "_private"


@pytest.mark.parametrize(
    "name", [*keras_trainer.trainer_methods(), *keras_backend.lowered_functions()]
)
def test_everything_that_is_patched_is_listed(name: str) -> None:
    assert f"`{name}`" in INSIDE


@pytest.mark.parametrize(
    "name", sorted(p.name for p in PRIVATE.glob("*.py") if p.name != "__init__.py")
)
def test_every_file_of_private_names_is_listed(name: str) -> None:
    assert f"| `{name}` |" in INSIDE


def test_the_files_that_it_names_exist() -> None:
    named = re.findall(r"`(?:keras_sgd_plus/)?(_\w+(?:/\w+\.py)?)`", INSIDE)
    folders = {name for name in named if name.count("/") or name in _folders()}
    assert len(folders) > 15
    missing = [n for n in folders if not (ROOT / "keras_sgd_plus" / n).exists()]
    assert missing == []


def _folders() -> set[str]:
    return {p.name for p in (ROOT / "keras_sgd_plus").iterdir() if p.is_dir()}


@pytest.mark.parametrize("page", ["averages", "recipes", "records"])
def test_block_runs(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        script = tmp_path / "block.py"
        script.write_text(block)
        runpy.run_path(str(script))
        expected = re.findall(r"^print\(.*\)  # (\S+?)(?::? .*)?$", block, flags=re.M)
        assert capsys.readouterr().out.split() == expected != []
