"""`ExactResume`: an interrupted run ends with the bits of an uninterrupted one."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support import resume_run
from tests.support.messages import normalises
from tests.support.paths import ROOT
from tests.support.resume_run import (
    AVERAGED,
    EPOCHS,
    KINDS,
    NUM_BATCHES,
    fit_small,
    small_model,
)
from tests.support.tiers import tiered_keys
from tests.support.twins import Interrupt, Interrupted, dense_data

pytestmark = normalises

NUM_KILLS = 20


def assert_bits(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@functools.cache
def uninterrupted(kind: str, jit_compile: Any = "auto") -> Any:
    return resume_run.train(kind, None, jit_compile=jit_compile)


def _killed(kind: str, directory: Path, seed: int) -> None:
    command = [sys.executable, "-m", "tests.support.resume_run", kind, str(directory)]
    done = subprocess.run(
        [*command, str(NUM_KILLS), str(seed)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [int(w) for w in done.stdout.split() if w.isdigit()]
    assert counts[0] + counts[1] == NUM_KILLS and counts[1] >= NUM_KILLS // 5
    with np.load(directory / "final.npz") as found:
        final = [found[name] for name in found.files]
    assert_bits(final, uninterrupted(kind)[0])


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["seeded_arrays", *AVERAGED])
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    """SIGKILL ends 20 other processes, some of them inside a save."""
    _killed(kind, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_at_more_moments(kind: str, seed: int, tmp_path: Path) -> None:
    _killed(kind, tmp_path, seed)


# Epoch and batch: before any save, in mid-epoch, at the last batch of an epoch.
PLACES = [(0, 1), (1, 4), (2, NUM_BATCHES - 1)]
DEFAULT = ("seeded_arrays",)


@pytest.mark.parametrize("kind", tiered_keys(KINDS, *DEFAULT))
def test_interrupted_in_one_process(kind: str, tmp_path: Path) -> None:
    # The tests above run these kinds with XLA, in processes that they kill.
    jit_compile = False if kind in DEFAULT else "auto"
    for place in PLACES:
        with pytest.raises(Interrupted):
            interrupt = [Interrupt(*place)]
            resume_run.train(kind, tmp_path, interrupt, jit_compile=jit_compile)
    found, history = resume_run.train(kind, tmp_path, jit_compile=jit_compile)
    expected, whole = uninterrupted(kind, jit_compile)
    assert_bits(found, expected)
    for name, values in whole.items():  # the logs of the epoch that was resumed, too
        assert history[name] == values[-len(history[name]) :]
    assert len(history["loss"]) == EPOCHS - 2
    arrays, _ = uninterrupted("arrays", jit_compile)
    order = [state.tobytes() for state in arrays]
    differs = [a.tobytes() != b for a, b in zip(expected, order, strict=True)]
    assert any(differs) == (kind != "arrays")  # the kinds do differ


@pytest.mark.matrix
@pytest.mark.parametrize("settings", [{"examples_per_update": 5}, {"order": "given"}])
def test_interrupted_with_other_settings(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    expected, _ = resume_run.train("arrays", None, **settings)
    with pytest.raises(Interrupted):
        resume_run.train("arrays", tmp_path, [Interrupt(1, 7)], **settings)
    assert_bits(resume_run.train("arrays", tmp_path, **settings)[0], expected)


@pytest.mark.matrix
def test_several_steps_per_execution(tmp_path: Path) -> None:
    whole = small_model(steps_per_execution=4)
    fit_small(whole, None)
    with pytest.raises(Interrupted):
        fit_small(small_model(steps_per_execution=4), tmp_path, Interrupt(1, 3))
    model = small_model(steps_per_execution=4)
    fit_small(model, tmp_path)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.matrix
def test_one_update_per_batch(tmp_path: Path) -> None:
    """Stock SGD resumes as well."""
    settings = {"momentum": 0.9, "examples_per_update": None}
    whole = small_model(SGDPlus(0.02, **settings))
    fit_small(whole, None)
    with pytest.raises(Interrupted):
        fit_small(small_model(SGDPlus(0.02, **settings)), tmp_path, Interrupt(1, 4))
    model = small_model(SGDPlus(0.02, **settings))
    fit_small(model, tmp_path)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.matrix
def test_counts_of_skipped_examples_go_on(tmp_path: Path) -> None:
    x, y = dense_data()
    x[[2, 17, 28]] = np.nan

    def run(*callbacks: Any) -> Any:
        model = small_model(SGDPlus(0.02, nonfinite="skip", order="given"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = fit_small(model, tmp_path, *callbacks, x=x, y=y).history
        return history, model.optimizer.skipped_examples()

    with pytest.raises(Interrupted):
        run(Interrupt(1, 4))  # saved after batch 3
    history, found = run()
    assert history["skipped"] == [3.0]
    assert [(e.batch, e.positions) for e in found] == [(5, (3,))]


@pytest.mark.matrix
def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    expected, _ = resume_run.train("arrays", tmp_path, jit_compile=False)
    again, history = resume_run.train("arrays", tmp_path, jit_compile=False)
    assert history == {}
    assert_bits(again, expected)
    assert len(list(tmp_path.glob("*.index"))) == 2  # max_to_keep


def test_a_later_fit_without_it_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit_small(small_model(), tmp_path, Interrupt(1, 4))
    model = small_model()
    with pytest.raises(Interrupted):  # while it reads what was trained on
        fit_small(model, tmp_path, Interrupt(1, 1))
    model.optimizer.iterations.assign(0)
    history = fit_small(model, None).history
    assert len(history["loss"]) == 2
    assert int(model.optimizer.iterations) == 60


def test_the_seed_of_the_run_is_kept(tmp_path: Path) -> None:
    model = small_model(SGDPlus(0.02, seed=5, jit_compile=False))
    with pytest.raises(Interrupted):
        fit_small(model, tmp_path, Interrupt(1, 4))
    model = small_model(SGDPlus(0.02, seed=6, jit_compile=False))
    fit_small(model, tmp_path)
    assert model.optimizer.seed == 5


@pytest.mark.matrix
def test_weights_load_elsewhere(tmp_path: Path) -> None:
    model = small_model()
    fit_small(model, tmp_path)
    other = small_model()
    other.optimizer.build(other.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    checkpoint.restore(tf.train.latest_checkpoint(str(tmp_path))).expect_partial()
    for ours, theirs in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(other.optimizer.iterations) == 60


@pytest.mark.matrix
def test_the_recipe_without_the_callback(tmp_path: Path) -> None:
    """`tf.train.Checkpoint` saves the seeds; the counter says where the data go on."""
    (x, y), _ = resume_run.make_data("arrays")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(10)

    def steps(model: Any, last: int, save_at: int | None = None) -> None:
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            seeds=[v.value for v in model.variables if "seed" in v.path],
        )
        model.optimizer.build(model.trainable_variables)
        latest = tf.train.latest_checkpoint(str(tmp_path))
        if latest and save_at is None:
            checkpoint.restore(latest).assert_existing_objects_matched()
        first = int(model.optimizer.iterations) // 10
        for i, (x, y) in enumerate(dataset.skip(first).take(last - first), first + 1):
            model.optimizer.train_step(model, (x, y))
            if i == save_at:
                checkpoint.save(str(tmp_path / "recipe"))

    steps(whole := resume_run.make_model(jit_compile=False), 25, save_at=99)
    steps(resume_run.make_model(jit_compile=False), 17, save_at=12)
    steps(model := resume_run.make_model(jit_compile=False), 25)
    metrics = len(model.metrics_variables)
    assert metrics
    assert_bits(resume_run.state(model), resume_run.state(whole))
