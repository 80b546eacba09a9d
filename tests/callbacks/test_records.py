"""Callbacks see and write each batch, which is one compiled call, as Keras's do."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.seen import (
    ENDS,
    NO_XLA,
    N,
    Seen,
    assert_equal,
    pair_with,
    state_of,
)
from tests.support.twins import (
    Pair,
    assert_same,
)

EPOCHS = 5


@dataclass
class Watched:
    """A pair; for ours and theirs, a record and the folder that callbacks wrote to."""

    pair: Pair
    seen: list[Seen]
    folders: list[Path]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """One training with all callbacks that only look."""
    folders = [tmp_path_factory.mktemp(who) for who in ("ours", "theirs")]
    seen = [Seen(), Seen()]
    runs = iter(zip(folders, seen, strict=True))

    def callbacks() -> list[Any]:
        folder, seen = next(runs)
        best, board = str(folder / "best" / "{epoch}.keras"), str(folder / "board")
        return [
            keras.callbacks.CSVLogger(str(folder / "logs.csv")),
            keras.callbacks.ModelCheckpoint(best, save_best_only=True),
            # Keras before 3.15 writes every batch, whatever `update_freq` says.
            keras.callbacks.TensorBoard(board, update_freq=2 if seen is ours else 1),
            seen.callback,
        ]

    ours = seen[0]
    pair, *_ = pair_with(
        callbacks, fit={"epochs": EPOCHS}, compile={"metrics": ["mae"]}, plus=NO_XLA
    )
    assert_same(pair)
    # An epoch has 5 batches: only the loop makes that many updates.
    assert int(pair.ours.optimizer.iterations) == EPOCHS * N
    return Watched(pair, seen, folders)


def test_a_callback_sees_each_batch(watched: Watched) -> None:
    """Keras calls hooks once per batch, with the logs and weights of that moment."""
    ours, theirs = watched.seen
    expected = ["train begins"]
    for epoch in range(EPOCHS):
        batches = [text for i in range(len(ENDS)) for text in (f"{i}", f"{i} ends")]
        expected += [f"epoch {epoch}", *batches, f"epoch {epoch} ends"]
    assert ours.events == [*expected, "train ends"]
    places = [N * epoch + end - 1 for epoch in range(EPOCHS) for end in ENDS]
    assert len(theirs.batches) == EPOCHS * N
    for (logs, state), place in zip(ours.batches, places, strict=True):
        same_logs, same_state = theirs.batches[place]
        assert set(logs) == {"loss", "mae"}
        assert logs == pytest.approx(same_logs, rel=2e-5)
        for a, b in zip(state, same_state, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_csv_logger(watched: Watched) -> None:
    ours, theirs = (
        [{name: float(text) for name, text in row.items()} for row in rows]
        for rows in (
            csv.DictReader((folder / "logs.csv").read_text().splitlines())
            for folder in watched.folders
        )
    )
    assert [row["epoch"] for row in ours] == list(range(EPOCHS))
    assert set(ours[0]) == {"epoch", "loss", "mae", "val_loss", "val_mae"}
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    assert [row["loss"] for row in ours] == watched.pair.our_logs["loss"]


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The points that TensorBoard would show: tag -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, {})[event.step] = number
    return found


def test_tensorboard_by_batches(watched: Watched) -> None:
    """A step is a batch: our point is that of the batch's last example.

    The points of the validation stand over `iterations`, which counts examples in both.
    """
    ours, theirs = (_scalars(folder / "board" / "train") for folder in watched.folders)
    last = EPOCHS * len(ENDS)
    for tag in ("batch_loss", "batch_mae"):
        batches, examples = ours.pop(tag), theirs.pop(tag)
        assert set(range(2, last + 1, 2)) <= set(batches) <= set(range(1, last + 1))
        assert len(examples) == EPOCHS * N
        for step, value in batches.items():
            epoch, batch = divmod(step - 1, len(ENDS))
            same_value = examples[N * epoch + ENDS[batch]]
            assert value == pytest.approx(same_value, rel=2e-5), step
    assert set(ours) == {"epoch_loss", "epoch_mae", "epoch_learning_rate"}
    _assert_same_points(ours, theirs)
    ours, theirs = (
        _scalars(folder / "board" / "validation") for folder in watched.folders
    )
    _assert_same_points(ours, theirs)
    iterations = [N * (epoch + 1) for epoch in range(EPOCHS)]
    assert sorted(theirs["evaluation_loss_vs_iterations"]) == iterations


def _assert_same_points(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        same_points = {step: theirs[tag][step] for step in points}
        assert points and points == pytest.approx(same_points, rel=2e-5), tag


def test_checkpoint_of_the_best(watched: Watched) -> None:
    """It saves in the same epochs as with Keras, with the state of that moment."""
    folders = [folder / "best" for folder in watched.folders]
    ours, theirs = (sorted(int(p.stem) for p in folder.iterdir()) for folder in folders)
    assert ours == theirs
    assert 1 < len(ours) < EPOCHS
    best = keras.models.load_model(folders[0] / f"{ours[-1]}.keras")
    assert_equal(state_of(best), watched.seen[0].epochs[ours[-1] - 1])
