"""Replicas skip examples that are not finite, or hold back the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support.replicas import (
    Simulation,
    compiled,
    keras_twin,
    mirrored,
    shards,
    state,
    together,
)
from tests.support.twins import dense_data, dense_model


@pytest.mark.matrix
def test_skip_on_replicas() -> None:
    x, y = dense_data(28)
    x[1], y[12] = np.nan, np.inf  # replica 0 of batch 0, replica 1 of batch 1
    strategy = mirrored(2)
    make = compiled(dense_model, order="given", nonfinite="skip")
    with strategy.scope():
        model = keras_twin(make)
    fit = {"batch_size": 7, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match="left out 2 update"):
        history = model.fit(x, y, **fit).history
    assert history["skipped"] == [2]
    found = [
        (e.batch, e.replica, e.positions, e.iterations)
        for e in model.optimizer.skipped_examples()
    ]
    assert found == [(0, 0, (1,), 0), (1, 1, (1,), 7)]
    simulation = Simulation(lambda: keras_twin(make))
    simulation.train(shards(strategy, (x, y), 7))
    for ours, theirs in zip(state(model), state(simulation.model), strict=True):
        assert np.isfinite(ours.numpy()).all()
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["fit", "by hand"])
def test_raise_on_replicas_holds_the_batch(how: str) -> None:
    x, y = dense_data(28)
    y[12] = np.inf
    strategy = mirrored(2)
    with strategy.scope():
        model = keras_twin(compiled(dense_model, order="given", nonfinite="raise"))
        twin = keras_twin(compiled(dense_model, order="given"))
    place = r"position 1 of replica 1's part of batch 1"
    twin.fit(x[:7], y[:7], batch_size=7, shuffle=False, verbose=0)
    if how == "fit":
        with pytest.raises(FloatingPointError, match=place):
            model.fit(x, y, batch_size=7, shuffle=False, verbose=0)
    else:
        run = tf.function(
            lambda batch: strategy.run(
                lambda part: model.optimizer.train_step(model, part), args=(batch,)
            ),
            autograph=False,
        )
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
        batches = iter(strategy.experimental_distribute_dataset(dataset))
        run(next(batches))
        with pytest.raises(tf.errors.OpError, match=place):
            run(next(batches))
    for ours, theirs in zip(state(model), state(twin), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), ours.path)
    together(model, strategy)
    # The model can be trained on.
    model.fit(x[:7], y[:7], batch_size=7, shuffle=False, verbose=0)
