"""Freezing, recompiling, other optimizers and shared layers work as in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.messages import normalises
from tests.support.stories import Run, run_pair
from tests.support.tiers import tiered_rows
from tests.support.twins import (
    Pair,
    assert_engaged,
    assert_same,
    dense_data,
    dense_model,
    snapshot,
)

pytestmark = normalises

N = 20


def _two_fits(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.fit(*dense_data(N, seed=4))


def _unfreeze(run: Run) -> None:
    run.model.layers[0].trainable = False
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = True
    run.compile()
    run.fit(*dense_data(N))


def _freeze(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.compile()
    run.fit(*dense_data(N))


def _freeze_keeping_optimizer(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.compile(run.model.optimizer, loss="mae")
    run.fit(*dense_data(N))


def _freeze_without_compile(run: Run) -> None:
    """Keras goes on with its trace: freezing needs a new compile."""
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].trainable = False
    run.fit(*dense_data(N))


def _other_optimizer_and_back(run: Run) -> None:
    """Velocities and the count of updates stay with the optimizer."""
    run.compile()
    run.fit(*dense_data(N))
    mine = run.model.optimizer
    run.compile(keras.optimizers.Adam(0.01))
    run.fit(*dense_data(N, seed=4), batch_size=7)
    run.compile(mine)
    run.fit(*dense_data(N))


def _other_model_of_the_same_layers(run: Run) -> None:
    """An optimizer may go to a model of the variables it was built for."""
    run.compile()
    run.fit(*dense_data(N))
    optimizer = run.model.optimizer
    run.model = keras.Model(run.model.inputs, run.model.outputs)
    run.compile(optimizer)
    run.fit(*dense_data(N))


def _lora(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.layers[0].enable_lora(2)
    run.compile()
    run.fit(*dense_data(N))


def _other_loss_same_optimizer(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.compile(run.model.optimizer, loss="mae")
    run.fit(*dense_data(N))


def _rate_between_fits(run: Run) -> None:
    run.compile()
    run.fit(*dense_data(N))
    run.model.optimizer.learning_rate = 0.005
    run.fit(*dense_data(N))


def _weights_between_fits(run: Run) -> None:
    run.compile()
    start = run.model.get_weights()
    run.fit(*dense_data(N))
    run.model.set_weights(start)
    run.fit(*dense_data(N, seed=4))


STORIES = {
    story.__name__.strip("_"): story
    for story in (
        _two_fits,
        _unfreeze,
        _freeze,
        _freeze_keeping_optimizer,
        _freeze_without_compile,
        _other_optimizer_and_back,
        _other_model_of_the_same_layers,
        _lora,
        _other_loss_same_optimizer,
        _rate_between_fits,
        _weights_between_fits,
    )
}


# The others show that XLA compiles the loop anew.
WITHOUT_XLA = (_freeze_keeping_optimizer, _rate_between_fits, _other_optimizer_and_back)


@pytest.mark.matrix
@pytest.mark.parametrize("story", tiered_rows(STORIES))
def test_story(story: Callable[[Run], None], engagements: list[str]) -> None:
    pair = run_pair(dense_model, story, False if story in WITHOUT_XLA else "auto")
    if story is _lora:  # other variables than before: the change is not comparable
        pair.before = {}
    assert_same(pair)
    new_optimizer = story in (_unfreeze, _freeze, _lora)
    if story is _other_model_of_the_same_layers:
        assert engagements.pop(0) != pair.ours.name  # the first model
    assert_engaged(pair, engagements, N if new_optimizer else 2 * N)
    num_fits = 3 if story is _other_optimizer_and_back else 2
    assert len(pair.our_logs["loss"]) == num_fits


def _trunk() -> keras.Model:
    """A part to be trained first; its `BatchNormalization` keeps statistics."""
    norm = layers.BatchNormalization(momentum=0.9)
    stack = [layers.Reshape((5, 1)), layers.Conv1D(4, 2), norm, layers.Flatten()]
    return keras.Sequential([keras.Input((5,)), *stack], name="trunk")


@pytest.mark.matrix
def test_transfer_learning(engagements: list[str]) -> None:
    """A trained trunk gets a new head; it is frozen at first, then all trains slowly.

    A frozen `BatchNormalization` keeps its statistics and uses them.
    """
    kept: list[bool] = []

    def make() -> keras.Model:
        return keras.Sequential([keras.Input((5,)), _trunk(), layers.Dense(2)])

    def story(run: Run) -> None:
        run.compile(run.optimizer(learning_rate=0.005))
        run.fit(*dense_data(N))
        trunk, inputs = run.model.get_layer("trunk"), keras.Input((5,))
        run.model = keras.Model(inputs, layers.Dense(3)(trunk(inputs)))
        x, y = dense_data(N, outputs=3, seed=4)
        trunk.trainable = False
        run.compile(run.optimizer(learning_rate=0.005))
        before = trunk.get_weights()
        run.fit(x, y)
        pairs = zip(before, trunk.get_weights(), strict=True)
        kept.extend(np.array_equal(a, b) for a, b in pairs)
        trunk.trainable = True
        run.compile(run.optimizer(learning_rate=0.001))
        run.fit(x, y)
        assert not np.array_equal(trunk.get_weights()[0], before[0])

    pair = run_pair(make, story)
    assert kept and all(kept)
    pair.before = {}  # other variables were trained in the middle
    assert_same(pair)
    assert engagements.pop(0) != pair.ours.name  # the trunk under its first head
    assert_engaged(pair, engagements, N)


def _moved(optimizer: Any) -> Any:
    """Compiled with the optimizer of another model."""
    optimizer.build(dense_model().trainable_variables)
    model = dense_model()
    model.compile(optimizer, "mse")
    return model


def _thawed(optimizer: Any) -> Any:
    """Compiled with the optimizer that was built while a layer was frozen."""
    model = dense_model()
    model.layers[0].trainable = False
    optimizer.build(model.trainable_variables)
    model.layers[0].trainable = True
    model.compile(optimizer, "mse")
    return model


def _by_train_step(model: Any, x: Any, y: Any) -> None:
    step = getattr(model.optimizer, "train_step", None)  # SGD has none
    model.train_on_batch(x, y) if step is None else step(model, (x, y))


TRAIN: dict[str, Callable[..., Any]] = {
    "fit": lambda model, x, y: model.fit(x, y, verbose=0),
    "train_on_batch": lambda model, x, y: model.train_on_batch(x, y),
    "train_step": _by_train_step,
}


@pytest.mark.parametrize("train", tiered_rows(TRAIN, "fit"))
@pytest.mark.parametrize("make", [_moved, _thawed], ids=["moved", "thawed"])
def test_unknown_variables_are_refused_as_by_keras(make: Any, train: Any) -> None:
    """A new optimizer is needed for new variables, and Keras's own error says so."""
    texts = []
    for cls in (SGDPlus, keras.optimizers.SGD):
        optimizer = cls(0.02, 0.9)
        model = make(optimizer)
        state = snapshot(model)
        with pytest.raises(ValueError, match="recreate a new optimizer") as raised:
            train(model, *dense_data(N))
        for kind, arrays in snapshot(model).items():
            for a, b in zip(arrays, state[kind], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=kind)
        text = str(raised.value)
        for name in (model.name, model.layers[0].name):
            text = text.replace(name, "name")
        texts.append(text)
    assert texts[0] == texts[1]


@pytest.mark.matrix
def test_two_models_that_share_layers(engagements: list[str]) -> None:
    """Two heads on one trunk, an optimizer each, trained in turns."""
    x, y = dense_data(N)
    heads: dict[bool, Any] = {}

    def story(run: Run) -> None:
        run.compile()
        inputs, shared = run.model.inputs, run.model.layers[0].output
        head = keras.Model(inputs, layers.Dense(1)(shared))
        second = heads[run.is_ours] = Run(lambda: head, run.is_ours)
        second.compile(run.optimizer(learning_rate=0.02, momentum=0.5))
        for _ in range(2):
            run.fit(x, y)
            second.fit(x, y[:, :1])

    pair = run_pair(dense_model, story)
    assert_same(pair)
    ours, theirs = heads[True], heads[False]
    other = Pair(ours.model, theirs.model, ours.logs, theirs.logs, ours.before)
    assert_same(other)
    names = {pair.ours.name, other.ours.name}
    assert set(engagements) == names and len(engagements) == 2
    for model in (pair.ours, other.ours):
        assert int(model.optimizer.iterations) == 2 * N


@pytest.mark.matrix
def test_two_models_in_turns(engagements: list[str]) -> None:
    """Two models and optimizers do not disturb each other."""
    x, y = dense_data(N)
    together = [Run(dense_model, True) for _ in range(2)]
    alone = [Run(dense_model, True) for _ in range(2)]
    for runs in (together, alone):
        for run, rate in zip(runs, (0.01, 0.1), strict=True):
            run.compile(run.optimizer(learning_rate=rate))
    for _ in range(2):
        for run in together:
            run.fit(x, y)
    for run in alone:
        run.fit(x, y, epochs=2)
    for a, b in zip(together, alone, strict=True):
        for v, w in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
            np.testing.assert_array_equal(v, w)
    assert len(set(engagements)) == 4
