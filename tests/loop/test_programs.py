"""Random programs end alike on SGDPlus and on Keras: thirty in the slow set."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import keras
import pytest

from tests.support.programs import Program
from tests.support.structures import put_back_the_old_fault

NUM_STEPS = 6
# More of them: PROGRAMS=500 python -m pytest -m slow tests/loop/test_programs.py
SHARDS, PROGRAMS = 3, int(os.environ.get("PROGRAMS", "30"))


def run(number: int, folder: Path) -> Program:
    """Runs the program of a number; an error names the steps that it did."""
    program = Program(number, folder)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(NUM_STEPS):
                program.step()
        texts = [str(each.message) for each in said]
        assert not [text for text in texts if "XLA cannot" in text]
    except BaseException as error:
        steps = ", ".join(program.done)
        error.add_note(f"To run it again: run({number}). {program.kind}: {steps}")
        raise
    return program


@pytest.mark.matrix
@pytest.mark.parametrize("number", [1, 2])
def test_a_program_ends_as_with_keras(
    number: int, tmp_path: Path, engagements: list[str]
) -> None:
    assert run(number, tmp_path).done and engagements


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_programs_end_as_with_keras(shard: int, tmp_path: Path) -> None:
    kinds, steps = set(), set()
    for number in range(shard, PROGRAMS, SHARDS):
        program = run(number, tmp_path)
        kinds.add(program.kind)
        steps.update(program.done)
        keras.backend.clear_session()
    assert len(kinds) >= 3 and len(steps) >= 8


@pytest.mark.slow
def test_the_programs_find_losses_built_for_another_structure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back_the_old_fault(monkeypatch)
    with pytest.raises(AssertionError):
        for number in range(PROGRAMS):
            run(number, tmp_path)
