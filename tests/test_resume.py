"""A run that is interrupted and restarted ends with the bits of one that is not."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus
from tests import resume_run
from tests.resume_run import EPOCHS, KINDS, NUM_BATCHES
from tests.twins import Interrupt, Interrupted, dense_data, dense_model

ROOT = Path(__file__).resolve().parent.parent
NUM_KILLS = 20


def assert_bits(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


_whole: dict[str, Any] = {}


def uninterrupted(kind: str) -> Any:
    if kind not in _whole:
        _whole[kind] = resume_run.train(kind, None)
    return _whole[kind]


def _killed(kind: str, directory: Path, seed: int) -> None:
    command = [sys.executable, "-m", "tests.resume_run", kind, str(directory)]
    done = subprocess.run(
        [*command, str(NUM_KILLS), str(seed)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [int(w) for w in done.stdout.split() if w.isdigit()]
    assert counts[0] + counts[1] == NUM_KILLS and counts[1] >= NUM_KILLS // 5
    with np.load(directory / "final.npz") as found:
        final = [found[name] for name in found.files]
    assert_bits(final, uninterrupted(kind)[0])


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """20 times SIGKILL, some of them inside a save, in other processes than this."""
    _killed("seeded_arrays", tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_at_more_moments(kind: str, seed: int, tmp_path: Path) -> None:
    _killed(kind, tmp_path, seed)


# In the first epoch before any save, in mid-epoch, at the last batch of an epoch.
PLACES = [(0, 1), (1, 4), (2, NUM_BATCHES - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_in_one_process(kind: str, tmp_path: Path) -> None:
    for place in PLACES:
        with pytest.raises(Interrupted):
            resume_run.train(kind, tmp_path, [Interrupt(*place)])
    found, history = resume_run.train(kind, tmp_path)
    expected, whole = uninterrupted(kind)
    assert_bits(found, expected)
    for name, values in whole.items():  # the logs of the epoch that was resumed, too
        assert history[name] == values[-len(history[name]) :]
    assert len(history["loss"]) == EPOCHS - 2
    order = [state.tobytes() for state in uninterrupted("arrays")[0]]
    differs = [a.tobytes() != b for a, b in zip(expected, order, strict=True)]
    assert any(differs) == (kind != "arrays")  # the kinds do differ


@pytest.mark.parametrize("settings", [{"examples_per_update": 5}, {"order": "given"}])
def test_interrupted_with_other_settings(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    expected, _ = resume_run.train("arrays", None, **settings)
    with pytest.raises(Interrupted):
        resume_run.train("arrays", tmp_path, [Interrupt(1, 7)], **settings)
    assert_bits(resume_run.train("arrays", tmp_path, **settings)[0], expected)


def _fit(model: Any, directory: Path | None, *callbacks: Any, **kwargs: Any) -> Any:
    x, y = dense_data()
    every = [*callbacks, *([ExactResume(directory, 2)] if directory else [])]
    arguments = {"batch_size": 5, "epochs": 2, "shuffle": False, "verbose": 0}
    arguments = {"x": x, "y": y, **arguments, **kwargs}
    return model.fit(callbacks=every, **arguments)


def _model(optimizer: Any = None, **compile: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = dense_model()
    model.compile(optimizer or SGDPlus(0.02, momentum=0.9), "mse", **compile)
    return model


def test_several_steps_per_execution(tmp_path: Path) -> None:
    whole = _model(steps_per_execution=4)
    _fit(whole, None)
    with pytest.raises(Interrupted):
        _fit(_model(steps_per_execution=4), tmp_path, Interrupt(1, 3))
    model = _model(steps_per_execution=4)
    _fit(model, tmp_path)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_update_per_batch(tmp_path: Path) -> None:
    """Also stock SGD resumes."""
    settings = {"momentum": 0.9, "examples_per_update": None}
    whole = _model(SGDPlus(0.02, **settings))
    _fit(whole, None)
    with pytest.raises(Interrupted):
        _fit(_model(SGDPlus(0.02, **settings)), tmp_path, Interrupt(1, 4))
    model = _model(SGDPlus(0.02, **settings))
    _fit(model, tmp_path)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_counts_of_skipped_examples_go_on(tmp_path: Path) -> None:
    x, y = dense_data()
    x[[2, 17, 28]] = np.nan

    def run(*callbacks: Any) -> Any:
        model = _model(SGDPlus(0.02, nonfinite="skip", order="given"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = _fit(model, tmp_path, *callbacks, x=x, y=y).history
        return history, model.optimizer.skipped_examples()

    with pytest.raises(Interrupted):
        run(Interrupt(1, 4))  # saved after batch 3
    history, found = run()
    assert history["skipped"] == [3.0]
    assert [(e.batch, e.positions) for e in found] == [(5, (3,))]


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    expected, _ = resume_run.train("arrays", tmp_path)
    again, history = resume_run.train("arrays", tmp_path)
    assert history == {}
    assert_bits(again, expected)
    assert len(list(tmp_path.glob("*.index"))) == 2  # max_to_keep


def test_a_later_fit_without_it_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _fit(_model(), tmp_path, Interrupt(1, 4))
    model = _model()
    with pytest.raises(Interrupted):  # while it reads what was trained on
        _fit(model, tmp_path, Interrupt(1, 1))
    model.optimizer.iterations.assign(0)
    history = _fit(model, None).history
    assert len(history["loss"]) == 2
    assert int(model.optimizer.iterations) == 60


def test_the_seed_of_the_run_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _fit(_model(SGDPlus(0.02, seed=5)), tmp_path, Interrupt(1, 4))
    model = _model(SGDPlus(0.02, seed=6))
    _fit(model, tmp_path)
    assert model.optimizer.seed == 5


def test_weights_load_elsewhere(tmp_path: Path) -> None:
    model = _model()
    _fit(model, tmp_path)
    other = _model()
    other.optimizer.build(other.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    checkpoint.restore(tf.train.latest_checkpoint(str(tmp_path))).expect_partial()
    for ours, theirs in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(other.optimizer.iterations) == 60


def test_the_recipe_without_the_callback(tmp_path: Path) -> None:
    """`tf.train.Checkpoint` with the seeds, and data positioned from the counter."""
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

    steps(whole := resume_run.make_model(), 25, save_at=99)
    steps(resume_run.make_model(), 17, save_at=12)
    steps(model := resume_run.make_model(), 25)
    metrics = len(model.metrics_variables)
    assert metrics
    assert_bits(resume_run.state(model), resume_run.state(whole))


# What is refused


def _other_model(directory: Path) -> Any:
    _fit(_model(), directory)
    keras.utils.set_random_seed(3)
    model = dense_model(units=7)
    model.compile(SGDPlus(0.02, momentum=0.9), "mse")
    return model


def _saved(directory: Path) -> Any:
    _fit(_model(), directory)
    return _model()


def _unbuilt(directory: Path) -> Any:
    _fit(_model(), directory)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(SGDPlus(0.02), "mse")
    return model


def _dataset(**shuffle: Any) -> tf.data.Dataset:
    slices = tf.data.Dataset.from_tensor_slices(dense_data())
    return slices.shuffle(30, **shuffle).batch(5)


def _unseeded(model: Any, directory: Path) -> None:
    # With a global seed, which the fixture sets, it would be the same each time.
    tf.random.set_seed(None)
    dataset = _dataset(reshuffle_each_iteration=False)
    _fit(model, directory, x=dataset, y=None, batch_size=None)


Row = tuple[Callable[[Path], Any], Callable[[Any, Path], Any], type[Exception], str]
REFUSED: dict[str, Row] = {
    "shuffled_arrays": (
        lambda d: _model(),
        lambda m, d: _fit(m, d, shuffle=True),
        ValueError,
        r"Use fit\(shuffle=False\)",
    ),
    "shuffled_pydataset": (
        lambda d: _model(),
        lambda m, d: _fit(
            m, d, x=SeededArrays(*dense_data()), y=None, batch_size=None, shuffle=True
        ),
        ValueError,
        r"Use fit\(shuffle=False\)",
    ),
    "reshuffled_dataset": (
        lambda d: _model(),
        lambda m, d: _fit(m, d, x=_dataset(seed=1), y=None, batch_size=None),
        ValueError,
        r"Use shuffle\(..., seed=..., reshuffle_each_iteration=False\)",
    ),
    "unseeded_dataset": (
        lambda d: _model(),
        _unseeded,
        ValueError,
        r"Use shuffle\(..., seed=...",
    ),
    "steps_of_finite_data": (
        lambda d: _model(),
        lambda m, d: _fit(m, d, steps_per_epoch=3),
        ValueError,
        r"Use dataset.repeat\(\)",
    ),
    "stock_sgd": (
        lambda d: _model(keras.optimizers.SGD(0.02)),
        _fit,
        TypeError,
        r"Compile the model with SGDPlus\(...\)",
    ),
    "unbuilt": (_unbuilt, _fit, ValueError, "Begin it with keras.Input"),
    "other_model": (_other_model, _fit, ValueError, "Name another directory"),
    "other_batches": (
        _saved,
        lambda m, d: _fit(m, d, batch_size=10),
        ValueError,
        "epochs of 6 batches there, of 3 here.*Name another directory",
    ),
    "directory": (
        lambda d: _model(),
        lambda m, d: ExactResume(None),
        TypeError,
        "`directory` must be a str or a path.*Name one",
    ),
    "save_freq": (
        lambda d: _model(),
        lambda m, d: ExactResume(d, save_freq="batch"),
        TypeError,
        "`save_freq` must be an int >= 1.*Use 1 or more",
    ),
    "max_to_keep": (
        lambda d: _model(),
        lambda m, d: ExactResume(d, max_to_keep=0),
        ValueError,
        "`max_to_keep` must be an int >= 1.*Use 1 or more",
    ),
    "lengths": (
        lambda d: _model(),
        lambda m, d: SeededArrays(np.ones((3, 5)), np.ones((4, 2))),
        ValueError,
        "Give every example its target",
    ),
    "no_examples": (
        lambda d: _model(),
        lambda m, d: SeededArrays(np.ones((0, 5))),
        ValueError,
        "Give every example its target",
    ),
    "batch_size": (
        lambda d: _model(),
        lambda m, d: SeededArrays(np.ones((3, 5)), batch_size=1.5),
        TypeError,
        "`batch_size` must be an int >= 1",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_refused(key: str, tmp_path: Path) -> None:
    make, trigger, error, fix = REFUSED[key]
    model = make(tmp_path)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(error, match=fix) as raised:
        trigger(model, tmp_path)
    assert type(raised.value) is error
    assert "Received: " in str(raised.value)
    for weight, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(weight, value)


# SeededArrays


def test_seeded_arrays_visit_each_once_in_an_order_of_seed_and_epoch() -> None:
    x = np.arange(23)
    y = {"a": 2 * x, "b": np.stack([x, x], 1)}

    def epochs(seed: int) -> list[list[int]]:
        data = SeededArrays(x, y, batch_size=5, seed=seed)
        orders = []
        for _ in range(3):
            data.on_epoch_begin()
            batches = [data[i] for i in range(len(data))]
            assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
            for rows, targets in batches:
                np.testing.assert_array_equal(targets["a"], 2 * rows)
                np.testing.assert_array_equal(targets["b"][:, 1], rows)
            orders.append(np.concatenate([b[0] for b in batches]).tolist())
        return orders

    orders = epochs(1)
    assert all(sorted(order) == x.tolist() for order in orders)
    assert len({tuple(order) for order in [*orders, *epochs(2)]}) == 6
    assert epochs(1) == orders
    again = SeededArrays(x, batch_size=23, seed=1)
    again.next_epoch = 2
    again.on_epoch_begin()
    assert again[0][0].tolist() == orders[2]


def test_seeded_arrays_have_weights() -> None:
    x, y = dense_data(6)
    data = SeededArrays(x, y, np.zeros(6), batch_size=4)
    model = _model(SGDPlus(0.1))
    before = model.get_weights()
    model.fit(data, shuffle=False, verbose=0)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert int(model.optimizer.iterations) == 6
