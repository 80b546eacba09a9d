"""`ExactResume` goes on with the records of an `ExampleLog`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_sgd_plus import ExactResume, ExampleLog, SeededArrays, SGDPlus
from tests.support.by_hand import cases
from tests.support.tiers import tiered_rows
from tests.support.twins import Interrupt, Interrupted

DENSE = cases(44)["dense"]
QUANTITIES = ("visited", "loss", "unweighted_loss", "gradient_norm", "prediction")
EPOCHS = 3
Order = Callable[[ExampleLog, Any], list[Any]]


def _log(path: Path | None = None) -> ExampleLog:
    return ExampleLog(gradient_norm=True, prediction=True, path=path)


def _fit(callbacks: list[Any]) -> None:
    model = DENSE.compiled(SGDPlus(0.01, momentum=0.9, seed=2, jit_compile=False))
    data = SeededArrays(DENSE.x, DENSE.y, batch_size=8, seed=3)
    model.fit(data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)


ORDERS: dict[str, Order] = {
    "log_first": lambda log, resume: [log, resume],
    "resume_first": lambda log, resume: [resume, log],
}


@pytest.mark.matrix
@pytest.mark.parametrize("in_files", [False, True], ids=["memory", "files"])
@pytest.mark.parametrize("order", tiered_rows(ORDERS))
def test_the_records_are_those_of_an_uninterrupted_run(
    order: Order, in_files: bool, tmp_path: Path
) -> None:
    whole = _log()
    _fit([whole])
    path = tmp_path / "log" if in_files else None
    # In an epoch, and at the end of one.
    for place in [(0, 2), (1, 5)]:
        with pytest.raises(Interrupted):
            resume = ExactResume(tmp_path / "run", save_freq=2)
            _fit([*order(_log(path), resume), Interrupt(*place)])
    log = _log(path)
    _fit(order(log, ExactResume(tmp_path / "run", save_freq=2)))
    for name in QUANTITIES:
        expected = getattr(whole, name)
        assert len(expected) == EPOCHS
        np.testing.assert_array_equal(getattr(log, name), expected, err_msg=name)


def test_a_save_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _fit([ExactResume(tmp_path, save_freq=2), Interrupt(1, 3)])
    with pytest.raises(ValueError, match="ExampleLog here, without it there"):
        _fit([_log(), ExactResume(tmp_path, save_freq=2)])


@pytest.mark.matrix
def test_a_save_with_records_serves_a_run_without(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _fit([_log(), ExactResume(tmp_path, save_freq=2), Interrupt(1, 3)])
    _fit([ExactResume(tmp_path, save_freq=2)])
