"""`ExactResume` after a power cut, a full disc, a byte that changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.messages import normalises
from tests.support.paths import ROOT
from tests.support.resume_run import fit_small, small_model
from tests.support.tiers import tiered_rows
from tests.support.twins import Interrupt, Interrupted

pytestmark = normalises
LAST = 6  # number of the newest save: two epochs of 6 batches, each second is saved


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path, place: float = 0.3) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 16
    path.write_bytes(data)


def _data(number: int) -> str:
    return f"ckpt-{number}.data-00000-of-00001"


def _index(number: int) -> str:
    return f"ckpt-{number}.index"


# What happens to the directory, the file that the warning names, or None for none, and
# the number of the save that training goes on from.
Row = tuple[Callable[[Path], Any], str | None, int]
DAMAGES: dict[str, Row] = {
    "lost_index": (lambda d: (d / _index(LAST)).unlink(), _data(LAST), LAST - 1),
    "cut_data": (lambda d: _cut(d / _data(LAST)), _data(LAST), LAST - 1),
    "cut_index": (lambda d: _cut(d / _index(LAST)), _index(LAST), LAST - 1),
    "empty_data": (lambda d: os.truncate(d / _data(LAST), 0), _data(LAST), LAST - 1),
    "flipped_data": (lambda d: _flip(d / _data(LAST)), _data(LAST), LAST - 1),
    "flipped_index": (lambda d: _flip(d / _index(LAST)), _index(LAST), LAST - 1),
    "empty_list": (lambda d: os.truncate(d / "checkpoint", 0), None, LAST),
    "flipped_list": (lambda d: _flip(d / "checkpoint", 0.01), None, LAST),
    "lost_list": (lambda d: (d / "checkpoint").unlink(), None, LAST),
    "two_damaged": (
        lambda d: (_cut(d / _data(LAST)), _flip(d / _data(LAST - 1))),
        _data(LAST - 1),
        LAST - 2,
    ),
    "never_completed": (
        lambda d: (d / _data(LAST + 1)).write_bytes(b"a part"),
        None,
        LAST,
    ),
}


def interrupted(directory: Path) -> None:
    """A run that ends in its last batch but one."""
    with pytest.raises(Interrupted):
        fit_small(small_model(), directory, Interrupt(1, 5))


@pytest.fixture(scope="module")
def whole() -> list[np.ndarray]:
    """The weights of an uninterrupted run."""
    model = small_model()
    fit_small(model, None)
    return model.get_weights()


def resumed(directory: Path) -> tuple[Any, list[str]]:
    """The model at the end of a run that goes on, and the warnings."""
    model = small_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_small(model, directory)
    return model, [str(w.message) for w in caught]


@pytest.mark.parametrize(
    "damage, named, number",
    tiered_rows(DAMAGES, "flipped_data", unpack=True),
)
def test_the_newest_complete_save_is_taken(
    damage: Callable[[Path], Any],
    named: str | None,
    number: int,
    tmp_path: Path,
    whole: list[np.ndarray],
) -> None:
    interrupted(tmp_path)
    damage(tmp_path)
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model, said = resumed(tmp_path)
    for ours, theirs in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if named is None:
        assert not said
    else:
        (text,) = said
        assert named in text and f"ckpt-{number}'" in text
    # Damaged files are as they were, and older complete ones make room for new ones.
    for name, content in there.items():
        if named and (found := re.match(r"ckpt-(\d+)\.", name)):
            if int(found[1]) > number:
                assert (tmp_path / name).read_bytes() == content
    complete = [p for p in tmp_path.glob("*.index") if p.name not in there or not named]
    assert 1 <= len(complete) <= 3
    assert not resumed(tmp_path)[1] or named


def test_a_first_save_that_was_interrupted(
    tmp_path: Path, whole: list[np.ndarray]
) -> None:
    (tmp_path / "ckpt-1_temp").mkdir()
    (tmp_path / "ckpt-1_temp" / "part-00000-of-00001.index").write_bytes(b"")
    model, said = resumed(tmp_path)
    assert len(said) == 1 and "begins anew" in said[0] and "ckpt-1_temp" in said[0]
    for ours, theirs in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_complete_save_is_left(tmp_path: Path) -> None:
    interrupted(tmp_path)
    for path in tmp_path.glob("*.data*"):
        _cut(path)
    model = small_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match="delete the directory") as raised:
        fit_small(model, tmp_path)
    assert all(_data(n) in str(raised.value) for n in (LAST - 2, LAST - 1, LAST))
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


ON_A_FULL_DISC = """
import resource, sys
from pathlib import Path
from tests.support.resume_run import fit_small, small_model
model = small_model()
fit_small(model, None, epochs=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))  # bytes of a file
try:
    fit_small(small_model(), Path(sys.argv[1]))
except Exception as error:
    print("RAISED", *getattr(error, "__notes__", ()))
"""


@pytest.mark.matrix
def test_a_full_disc(tmp_path: Path, whole: list[np.ndarray]) -> None:
    """The run ends with an error that says so; saves before it stay."""
    interrupted(tmp_path)
    (tmp_path / _index(LAST)).unlink()  # so that the run has something to save
    (tmp_path / _data(LAST)).unlink()
    command = [sys.executable, "-c", ON_A_FULL_DISC, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "RAISED" in run.stdout, run.stderr[-2000:]
    assert "saves before it are complete" in run.stdout
    model, said = resumed(tmp_path)
    assert not said
    for ours, theirs in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
