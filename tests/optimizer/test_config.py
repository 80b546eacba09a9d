"""An optimizer has a config, seeds and variables, and holds nothing of the model."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.cases import OPTIONS
from tests.support.saved import (
    MOMENTUM,
    SGD,
)
from tests.support.twins import dense_data, dense_model, linear_model

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
    "max_loss_fraction": None,  # the only one beside gradient_accumulation_steps
}


def test_config_holds_every_argument() -> None:
    config = SGDPlus(**EVERY_ARGUMENT).get_config()
    assert config == pytest.approx(EVERY_ARGUMENT)  # learning_rate goes through float32
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
        assert value is None or isinstance(value, (bool, int, float, str)), name
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
