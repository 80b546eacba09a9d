"""Configuration, saved state and copies: what comes back, and that training goes on."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.test_by_hand import OPTIONS
from tests.twins import dense_data, dense_model

SGD = keras.optimizers.SGD
MOMENTUM: dict[str, Any] = {"learning_rate": 0.05, "momentum": 0.9}
EVERY_ARGUMENT: dict[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.01,
    "clipnorm": None,
    "clipvalue": 0.5,
    "global_clipnorm": None,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 4,
    "name": "mine",
    "examples_per_update": 5,
    "order": "given",
    "seed": 2**40,
    "nonfinite": "raise",
    "jit_compile": False,
}
STATE_OF_LINEAR = 2  # kernel and bias: with momentum, a velocity each


def linear_model() -> keras.Model:
    """The smallest model: the tests here are about state, not about the loop."""
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])


def state_of(model: Any) -> list[np.ndarray]:
    """Weights, then the optimizer's variables."""
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def fit(model: Any, first: int, last: int, batch_size: int) -> None:
    x, y = dense_data()
    batch = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    model.fit(x[first:last], y[first:last], **batch)


# Configuration


def test_config_holds_every_argument() -> None:
    config = SGDPlus(**EVERY_ARGUMENT).get_config()
    assert config == pytest.approx(EVERY_ARGUMENT)  # learning_rate passes by float32
    assert SGDPlus.from_config(config).get_config() == config


@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("jit_compile", ["auto", True, False])
def test_config_round_trip(k: int | None, jit_compile: bool | str) -> None:
    config = SGDPlus(examples_per_update=k, jit_compile=jit_compile).get_config()
    again = SGDPlus.from_config(config)
    assert again.get_config() == config
    assert (again.examples_per_update, again.jit_compile) == (k, jit_compile)


def test_schedule_round_trip() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.9)
    again = SGDPlus.from_config(SGDPlus(schedule).get_config())
    assert isinstance(again._learning_rate, type(schedule))
    assert again._learning_rate.get_config() == schedule.get_config()


def test_takes_config_of_sgd() -> None:
    config = SGD(**MOMENTUM, nesterov=True, clipnorm=1.0).get_config()
    ours = SGDPlus.from_config(config).get_config()
    assert {name: ours[name] for name in config} == config
    assert (ours["examples_per_update"], ours["order"]) == (1, "reshuffle")


def test_registered_under_package_name() -> None:
    optimizer = SGDPlus(**EVERY_ARGUMENT)
    written = keras.saving.serialize_keras_object(optimizer)
    assert written["registered_name"] == "keras_sgd_plus>SGDPlus"
    read = keras.saving.deserialize_keras_object(written)
    assert type(read) is SGDPlus
    assert read.get_config() == optimizer.get_config()
    by_optimizers = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(by_optimizers) is SGDPlus


# Variables and seeds


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_owns_the_variables_of_sgd(options: dict[str, Any]) -> None:
    owned = []
    for cls in (SGDPlus, SGD):
        optimizer = cls(**{**MOMENTUM, **options})
        layer = keras.layers.Dense(2, name="layer")
        layer.build((None, 5))
        optimizer.build(layer.trainable_variables)
        prefix = optimizer.name + "/"
        assert all(v.path.startswith(prefix) for v in optimizer.variables[:2])
        owned.append(
            [
                (v.name, v.path.removeprefix(prefix), v.shape, v.dtype, v.trainable)
                for v in optimizer.variables
            ]
        )
    assert owned[0] == owned[1]
    assert len(owned[0]) >= 2  # iterations and learning rate


def test_leaves_random_generators_alone() -> None:
    weights = []
    states = []
    for cls in (SGDPlus, SGD):
        keras.utils.set_random_seed(11)
        cls()
        states.append(
            (
                random.getstate(),
                repr(np.random.get_state()),
                tf.random.get_global_generator().state.numpy().tolist(),
                float(tf.random.uniform(())),
            )
        )
        weights.append(dense_model().get_weights())
    assert states[0] == states[1]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_derived_seed_follows_set_random_seed() -> None:
    seeds = []
    for seed in (1, 2, 1):
        keras.utils.set_random_seed(seed)
        seeds.append(SGDPlus().get_config()["seed"])
    assert seeds[0] == seeds[2] != seeds[1]
    assert isinstance(seeds[0], int)
    assert 0 <= seeds[0] < 2**63


def test_derived_seed_is_kept() -> None:
    optimizer = SGDPlus()
    random.random()  # moves the generator that the seed was derived from
    again = SGDPlus.from_config(optimizer.get_config())
    assert again.seed == optimizer.seed != SGDPlus().seed


# Saved in the middle of training


_GO_ON = """
import sys
import keras
import keras_sgd_plus
import numpy as np

for folder in sys.argv[1:]:
    data = np.load(folder + "/data.npz")
    model = keras.models.load_model(folder + "/model.keras")
    assert type(model.optimizer) is keras_sgd_plus.SGDPlus
    model.fit(data["x"], data["y"], batch_size=7, shuffle=False, verbose=0)
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    np.savez(folder + "/after.npz", *state)
"""

RESUMED: dict[str, dict[str, Any]] = {
    "given": {"order": "given"},
    "reshuffle": {"order": "reshuffle", "seed": 4},
    "derived_seed": {},
    "accumulation_and_ema": {
        "gradient_accumulation_steps": 4,  # 15 updates: saved in the middle of a sum
        "use_ema": True,
        "ema_momentum": 0.8,
    },
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """State after uninterrupted training, and after load_model in a new process."""
    folders, whole = {}, {}
    x, y = dense_data()
    for name, options in RESUMED.items():
        keras.utils.set_random_seed(1)
        model = linear_model()
        model.compile(SGDPlus(**MOMENTUM, **options), loss="mse")
        fit(model, 0, 15, batch_size=7)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save(folders[name] / "model.keras")
        np.savez(folders[name] / "data.npz", x=x[15:], y=y[15:])
        fit(model, 15, 30, batch_size=7)
        whole[name] = state_of(model)
    command = [sys.executable, "-c", _GO_ON, *map(str, folders.values())]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    split = {}
    for name, folder in folders.items():
        with np.load(folder / "after.npz") as after:
            split[name] = [after[key] for key in after.files]
    return {name: (whole[name], split[name]) for name in RESUMED}


@pytest.mark.parametrize("name", RESUMED)
def test_load_model_in_a_new_process_goes_on(
    name: str, resumed: dict[str, Any]
) -> None:
    whole, split = resumed[name]
    assert len(whole) == len(split)
    for a, b in zip(whole, split, strict=True):
        np.testing.assert_array_equal(a, b)
    iterations = int(whole[STATE_OF_LINEAR])  # the optimizer's first variable
    assert iterations == 30


Transfer = Callable[[Any, Any, Path], None]


def _by_own_variables(source: Any, target: Any, path: Path) -> None:
    del path
    store: dict[str, Any] = {}
    source.optimizer.save_own_variables(store)
    target.optimizer.load_own_variables(store)
    target.set_weights(source.get_weights())


def _by_variables(source: Any, target: Any, path: Path) -> None:
    del path
    for old, new in zip(
        [*source.variables, *source.optimizer.variables],
        [*target.variables, *target.optimizer.variables],
        strict=True,
    ):
        new.assign(old)


def _by_weights_file(source: Any, target: Any, path: Path) -> None:
    source.save_weights(path / "source.weights.h5")
    target.load_weights(path / "source.weights.h5")


def _by_keras_file(source: Any, target: Any, path: Path) -> None:
    source.save(path / "source.keras")
    target.load_weights(path / "source.keras")


def _by_checkpoint(source: Any, target: Any, path: Path) -> None:
    written = tf.train.Checkpoint(model=source, optimizer=source.optimizer)
    where = written.write(str(path / "checkpoint"))
    read = tf.train.Checkpoint(model=target, optimizer=target.optimizer).read(where)
    read.assert_existing_objects_matched()


TRANSFERS = {
    "own_variables": _by_own_variables,
    "variables": _by_variables,
    "weights_file": _by_weights_file,
    "keras_file": _by_keras_file,
    "checkpoint": _by_checkpoint,
}


# Without XLA: these compare what was transferred, the loop is compared elsewhere.
PLAIN: dict[str, Any] = {"order": "given", "jit_compile": False}


def _compiled(cls: type, seed: int = 1, **options: Any) -> Any:
    keras.utils.set_random_seed(seed)
    model = linear_model()
    options = {**MOMENTUM, **options, **(PLAIN if cls is SGDPlus else {})}
    # A loss object: Keras cannot read the name of one back from a whole-model .h5.
    model.compile(cls(**options), loss=keras.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    return model


def _batch_size(model: Any) -> int:
    return 5 if isinstance(model.optimizer, SGDPlus) else 1


@pytest.fixture(scope="module")
def sgd_throughout() -> list[np.ndarray]:
    return _sgd_throughout("momentum")


@pytest.fixture(scope="module")
def half_trained() -> dict[type, Any]:
    models = {cls: _compiled(cls) for cls in (SGD, SGDPlus)}
    for model in models.values():
        fit(model, 0, 10, _batch_size(model))
    return models


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=list(TRANSFERS))
@pytest.mark.parametrize(
    ("before", "after"),
    [(SGD, SGDPlus), (SGDPlus, SGD), (SGDPlus, SGDPlus)],
    ids=["sgd_to_plus", "plus_to_sgd", "plus_to_plus"],
)
def test_state_moves_and_training_goes_on(
    before: type,
    after: type,
    transfer: Transfer,
    half_trained: dict[type, Any],
    sgd_throughout: list[np.ndarray],
    engagements: list[str],
    tmp_path: Path,
) -> None:
    source, target = half_trained[before], _compiled(after, seed=2)
    transfer(source, target, tmp_path)
    for a, b in zip(state_of(source), state_of(target), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(target, 10, 20, _batch_size(target))
    assert engagements == ([target.name] if after is SGDPlus else [])
    assert int(target.optimizer.iterations) == 20
    for a, b in zip(state_of(target), sgd_throughout, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Each has state that the other optimizer must take over. After the 10 updates before,
# a sum of 3 gradients has one, and the weights have just become their average.
MIGRATED: dict[str, dict[str, Any]] = {
    "momentum": {},
    "nesterov_and_averages": {
        "nesterov": True,
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 5,
    },
    "accumulation": {"gradient_accumulation_steps": 3},
    "schedule": {
        "learning_rate": keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.3)
    },
}
OURS_ALONE = ("examples_per_update", "order", "seed", "nonfinite", "jit_compile")


@functools.cache
def _sgd_throughout(name: str) -> list[np.ndarray]:
    model = _compiled(SGD, **MIGRATED[name])
    fit(model, 0, 10, batch_size=1)
    fit(model, 10, 20, batch_size=1)
    return state_of(model)


@pytest.mark.parametrize("name", MIGRATED)
@pytest.mark.parametrize(
    ("before", "after"), [(SGD, SGDPlus), (SGDPlus, SGD)], ids=["to_plus", "back"]
)
def test_swapping_the_optimizer_of_a_saved_model(
    before: type, after: type, name: str, engagements: list[str], tmp_path: Path
) -> None:
    """For a model file: load it, compile with the other, load the state again."""
    path = tmp_path / "model.keras"
    model = _compiled(before, **MIGRATED[name])
    fit(model, 0, 10, _batch_size(model))
    model.save(path)
    config = model.optimizer.get_config()
    config = {key: value for key, value in config.items() if key not in OURS_ALONE}
    plus = PLAIN if after is SGDPlus else {}
    model = keras.models.load_model(path, compile=False)
    model.compile(after.from_config({**config, **plus}), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    fit(model, 10, 20, _batch_size(model))
    assert type(model.optimizer) is after
    assert len(engagements) == 1
    for a, b in zip(state_of(model), _sgd_throughout(name), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(model.optimizer._iterations) == 20


def test_clone_model_trains_on_its_own(
    half_trained: dict[type, Any], engagements: list[str]
) -> None:
    model = half_trained[SGDPlus]
    before = state_of(model)
    clone = keras.models.clone_model(model)
    clone.compile(SGDPlus.from_config(model.optimizer.get_config()), loss="mse")
    clone.set_weights(model.get_weights())
    fit(clone, 10, 20, batch_size=5)
    assert set(engagements) == {clone.name}
    assert int(clone.optimizer.iterations) == 10
    for a, b in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


# Where Keras itself loses things: no worse than SGD


def _kept(model: Any, again: Any) -> list[bool]:
    pairs = zip(state_of(model), state_of(again), strict=False)
    return [np.array_equal(a, b) for a, b in pairs]


def _whole_model_h5(model: Any, path: Path) -> Any:
    model.save(path / "model.h5")
    again = keras.models.load_model(path / "model.h5")
    live = model.get_compile_config()
    return {
        "compiled": again.compiled,
        "type": type(again.optimizer) is type(model.optimizer),
        "kept": _kept(model, again),
        "count": len(again.optimizer.variables),
        "live config": live and sorted(live),
    }


def _pickle_optimizer(model: Any, path: Path) -> Any:
    del path
    return _copied(model.optimizer, pickle.loads(pickle.dumps(model.optimizer)))


def _deepcopy_optimizer(model: Any, path: Path) -> Any:
    del path
    return _copied(model.optimizer, copy.deepcopy(model.optimizer))


def _copied(optimizer: Any, again: Any) -> Any:
    both = zip(optimizer.variables, again.variables, strict=False)
    return {
        "type": type(again) is type(optimizer),
        "config": again.get_config() == optimizer.get_config(),
        "built": again.built,
        "iterations": int(again.iterations),
        "count": len(again.variables),
        "kept": [np.array_equal(a.numpy(), b.numpy()) for a, b in both],
    }


def _pickle_model(model: Any, path: Path) -> Any:
    del path
    again = pickle.loads(pickle.dumps(model))
    kept = _kept(model, again)
    return again.compiled, kept, _copied(model.optimizer, again.optimizer)


def _deepcopy_model(model: Any, path: Path) -> Any:
    del path
    again = copy.deepcopy(model)
    kept = _kept(model, again)
    return again.compiled, kept, _copied(model.optimizer, again.optimizer)


LOSSY = {
    "h5": _whole_model_h5,
    "pickle_optimizer": _pickle_optimizer,
    "deepcopy_optimizer": _deepcopy_optimizer,
    "pickle_model": _pickle_model,
    "deepcopy_model": _deepcopy_model,
}


@pytest.mark.parametrize("way", LOSSY.values(), ids=list(LOSSY))
def test_same_outcome_as_sgd(way: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    outcomes = []
    for cls in (SGDPlus, SGD):
        model = _compiled(cls)
        fit(model, 0, 10, _batch_size(model))
        name = model.optimizer.name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # Keras says what it lost
            outcome = way(model, tmp_path)
        texts = [str(w.message).replace(name, "<name>") for w in caught]
        outcomes.append((outcome, texts))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("way", [pickle.loads, copy.deepcopy], ids=["pickle", "copy"])
def test_copied_model_still_steps_per_example(
    way: Any, half_trained: dict[type, Any], engagements: list[str]
) -> None:
    model = half_trained[SGDPlus]
    again = way(pickle.dumps(model) if way is pickle.loads else model)
    before = int(again.optimizer.iterations)
    fit(again, 10, 20, batch_size=5)
    assert engagements == [again.name]
    assert int(again.optimizer.iterations) == before + 10


# What the saver could find


def _reachable(owner: Any, seen: set[int]) -> Iterator[Any]:
    """Everything below an object, through attributes and containers, but not types."""
    if id(owner) in seen or isinstance(owner, (type, str, bytes, tf.Variable)):
        return
    seen.add(id(owner))
    yield owner
    if isinstance(owner, dict):
        below = [*owner.keys(), *owner.values()]
    elif isinstance(owner, (list, tuple, set, frozenset)):
        below = list(owner)
    elif isinstance(owner, keras.Variable):
        below = []
    else:
        below = list(getattr(owner, "__dict__", {}).values())
    for item in below:
        yield from _reachable(item, seen)


FOREIGN = (
    keras.layers.Layer,  # and so every model
    keras.metrics.Metric,
    keras.losses.Loss,
    type(tf.function(lambda: None)),
    tf.types.experimental.PolymorphicFunction,
    tf.types.experimental.ConcreteFunction,
    weakref.ref,
    weakref.WeakKeyDictionary,
)


def test_optimizer_holds_nothing_of_the_model() -> None:
    x, y = dense_data()
    models = {}
    for cls in (SGD, SGDPlus):
        model = models[cls] = linear_model()
        model.compile(cls(**MOMENTUM, weight_decay=0.1), loss="mse", metrics=["mae"])
        model.fit(x, y, batch_size=15, verbose=0)
    model = models[SGDPlus]
    model.optimizer.train_step(model, (x, y))
    names = set(vars(model.optimizer)) - set(vars(models[SGD].optimizer))
    for name in names:
        value = getattr(model.optimizer, name)
        assert value is None or isinstance(value, (bool, int, str)), name
    assert {"_examples_per_update", "_order", "_seed", "_jit_compile"} <= names
    found = {
        cls: {
            (name, type(item))
            for name, value in vars(owner.optimizer).items()
            for item in _reachable(value, set())
            if isinstance(item, FOREIGN)
        }
        for cls, owner in models.items()
    }
    assert found[SGDPlus] == found[SGD]
    assert not any(issubclass(kind, FOREIGN[:-2]) for _, kind in found[SGDPlus])


def test_the_walk_finds_what_it_looks_for() -> None:
    optimizer = SGDPlus()
    things = [linear_model(), keras.metrics.Mean(), tf.function(lambda: None)]
    for thing in (*things, weakref.ref(optimizer)):
        holder = {"a": [(thing,)]}
        assert any(isinstance(item, FOREIGN) for item in _reachable(holder, set()))
