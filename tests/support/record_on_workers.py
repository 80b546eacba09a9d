"""A worker that trains with an `ExampleLog`; run once per worker, with `TF_CONFIG`.

`python -m tests.support.record_on_workers FOLDER` writes to the folder, per worker, the
records of each run before and after `gather`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import ExactResume, ExampleLog, SeededArrays, SGDPlus
from tests.support.by_hand import Case, cases, with_ids
from tests.support.twins import Interrupt, Interrupted

N, BATCH, EPOCHS = 22, 7, 3  # the last batch has 1 example, so one worker gets none
QUANTITIES = ("visited", "loss", "unweighted_loss", "gradient_norm", "prediction")
SOURCES = ("arrays", "seeded_arrays", "dataset", "shuffled_by_id")
DENSE = cases()["dense"]


def data_of(source: str) -> tuple[Case, dict[str, Any], ExampleLog]:
    """The case, the data for `fit`, and a log."""
    log = ExampleLog(gradient_norm=True, prediction=True)
    if source == "seeded_arrays":
        data = SeededArrays(DENSE.x, DENSE.y, batch_size=BATCH, seed=2)
        return DENSE, {"x": data}, log
    if source == "dataset":
        dataset = tf.data.Dataset.from_tensor_slices((DENSE.x, DENSE.y)).batch(BATCH)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return DENSE, {"x": dataset.with_options(options)}, log
    if source == "shuffled_by_id":
        case, both = with_ids(DENSE)
        slices = tf.data.Dataset.from_tensor_slices(both).shuffle(N, seed=3)
        log = ExampleLog(gradient_norm=True, prediction=True, id="row")
        return case, {"x": slices.batch(BATCH)}, log
    return DENSE, {"x": DENSE.x, "y": DENSE.y, "batch_size": BATCH}, log


def trained(
    strategy: Any, source: str, log: Any = None, callbacks: Any = ()
) -> ExampleLog:
    """Fits with a log, and gives it."""
    keras.utils.set_random_seed(3)
    case, data, made = data_of(source)
    log = made if log is None else log
    with strategy.scope():
        model = case.compiled(SGDPlus(0.05, momentum=0.9, seed=4, jit_compile=False))
    fit = {"epochs": EPOCHS, "shuffle": False, "verbose": 0}
    model.fit(**data, **fit, callbacks=[log, *callbacks])
    return log


def arrays(log: ExampleLog) -> dict[str, np.ndarray]:
    """All that a log keeps, by name."""
    return {name: np.array(getattr(log, name)) for name in QUANTITIES}


def _write(strategy: Any, folder: Path, name: str, log: ExampleLog) -> None:
    worker = strategy.cluster_resolver.task_id
    np.savez(folder / f"{name}_{worker}.npz", **arrays(log))


def _resumed(strategy: Any, folder: Path) -> ExampleLog:
    # Both workers stop in the middle of the second epoch, and begin again.
    def log() -> ExampleLog:
        path = folder / "files"
        return ExampleLog(gradient_norm=True, prediction=True, path=path)

    def resume() -> ExactResume:
        return ExactResume(folder / "saves", save_freq=2)

    try:
        trained(strategy, "arrays", log(), [resume(), Interrupt(1, 2)])
    except Interrupted:
        return trained(strategy, "arrays", log(), [resume()])
    raise AssertionError("it was not interrupted")


def _refused(strategy: Any) -> str:
    data = tf.data.Dataset.from_tensor_slices((DENSE.x, DENSE.y)).batch(BATCH)
    with strategy.scope():
        model = DENSE.compiled(SGDPlus(0.05))
    try:
        model.fit(data, verbose=0, callbacks=[ExampleLog()])
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def main() -> None:
    # The first thing to do: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    folder = Path(sys.argv[1])
    assert "AutoShardPolicy.AUTO" in _refused(strategy)
    for source in SOURCES:
        log = trained(strategy, source)
        _write(strategy, folder, f"{source}_own", log)
        log.gather()
        log.gather()  # once more changes nothing
        _write(strategy, folder, source, log)
    log = _resumed(strategy, folder)
    log.gather()
    assert isinstance(log.loss, np.memmap)
    _write(strategy, folder, "resumed", log)


if __name__ == "__main__":
    main()
    os._exit(0)
