"""`ExampleLog` on replicas: the record of each example in its own row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import ExampleLog, SeededArrays, SGDPlus
from tests.support.by_hand import (
    Case,
    assert_kept,
    cases,
    kept_on_replicas,
    with_ids,
)
from tests.support.replicas import mirrored, shards
from tests.support.tiers import tiered_keys

DENSE = cases()["dense"]
N, BATCH, EPOCHS = 22, 7, 2  # parts of 4 and 3; the last batch has 1 example
SGD = {"learning_rate": 0.05, "momentum": 0.9}
Rows = list[list[list[np.ndarray]]]  # by epoch, batch and replica


class Run(NamedTuple):
    """A log, data for `fit`, and the order of rows in each epoch, known after it."""

    case: Case
    log: ExampleLog
    fit: dict[str, Any]
    orders: list[np.ndarray]


def _arrays() -> Run:
    fit = {"x": DENSE.x, "y": DENSE.y, "batch_size": BATCH}
    return Run(DENSE, _log(), fit, [np.arange(N)] * EPOCHS)


def _dataset() -> Run:
    data = tf.data.Dataset.from_tensor_slices((DENSE.x, DENSE.y)).batch(BATCH)
    return Run(DENSE, _log(), {"x": data}, [np.arange(N)] * EPOCHS)


def _seeded() -> Run:
    data = SeededArrays(DENSE.x, DENSE.y, batch_size=BATCH, seed=2)
    orders: list[np.ndarray] = []

    class Notes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            orders.append(np.concatenate([data.rows_of(i) for i in range(len(data))]))

    return Run(DENSE, _log(), {"x": data, "callbacks": [Notes()]}, orders)


def _shuffled() -> Run:
    """A stream in another order each time, which notes it."""
    case, (x, y) = with_ids(DENSE)
    orders: list[np.ndarray] = []

    def examples() -> Any:
        orders.append(np.random.default_rng(len(orders)).permutation(N))
        for row in orders[-1]:
            yield {"x": x["x"][row], "row": row}, y[row]

    each: Any = {"x": tf.TensorSpec(6, tf.float32), "row": tf.TensorSpec((), tf.int64)}
    signature = (each, tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(examples, output_signature=signature)
    data = data.batch(BATCH)
    data = data.apply(tf.data.experimental.assert_cardinality(-(-N // BATCH)))
    return Run(case, _log(id="row"), {"x": data}, orders)


def _log(**arguments: Any) -> ExampleLog:
    return ExampleLog(gradient_norm=True, prediction=True, **arguments)


def _parts(strategy: Any, orders: Any) -> Rows:
    # The rows that TensorFlow gives to each replica.
    return [
        [[rows for (rows,) in batch] for batch in shards(strategy, (order,), BATCH)]
        for order in orders
    ]


SOURCES: dict[str, Callable[[], Run]] = {
    "arrays": _arrays,
    "dataset": _dataset,
    "seeded_arrays": _seeded,
    "shuffled_by_id": _shuffled,
}


def _trained(
    source: str, num_replicas: int = 2, compiled: Any = None, **plus: Any
) -> tuple[Case, ExampleLog, Rows]:
    run, strategy = SOURCES[source](), mirrored(num_replicas)
    with strategy.scope():
        model = run.case.compiled(SGDPlus(**SGD, seed=4, **plus), **(compiled or {}))
    settings = {"epochs": EPOCHS, "shuffle": False, "verbose": 0}
    callbacks = [run.log, *run.fit.pop("callbacks", [])]
    model.fit(**run.fit, **settings, callbacks=callbacks)
    assert run.log.loss.shape == (EPOCHS, N)
    orders = run.orders[-EPOCHS:]  # Keras may look at a stream before it trains
    return run.case, run.log, _parts(strategy, orders)


def _assert_visited(log: ExampleLog, parts: Rows, group: int = 1) -> None:
    """Each replica counts its updates from those of all replicas before the batch."""
    before = 0
    for epoch, batches in enumerate(parts):
        for batch in batches:
            sizes = [-(-len(rows) // group) for rows in batch]
            for rows, size in zip(batch, sizes, strict=True):
                found = np.unique(log.visited[epoch, rows])
                assert found.tolist() == list(range(before, before + size))
            before += sum(sizes)


@pytest.mark.matrix
@pytest.mark.parametrize("source", tiered_keys(SOURCES))
def test_each_replica_as_by_hand(source: str) -> None:
    case, log, parts = _trained(source, jit_compile=False)
    _assert_visited(log, parts)
    assert_kept(log, kept_on_replicas(case, parts, log.visited, SGD))


SETTINGS: dict[str, dict[str, Any]] = {
    "with_xla": {"jit_compile": "auto"},
    "three_replicas": {"num_replicas": 3, "jit_compile": False},
    "groups": {"examples_per_update": 3, "jit_compile": False},
    "eagerly": {"compiled": {"run_eagerly": True}},
}


@pytest.mark.filterwarnings("ignore:Every batch of an epoch but the last")
@pytest.mark.parametrize("name", tiered_keys(SETTINGS))
def test_settings(name: str) -> None:
    case, log, parts = _trained("seeded_arrays", **SETTINGS[name])
    group = SETTINGS[name].get("examples_per_update", 1)
    _assert_visited(log, parts, group)
    expected = kept_on_replicas(case, parts, log.visited, SGD, group)
    assert_kept(log, expected)


@pytest.mark.matrix
def test_skipped_examples_are_nan_in_their_place() -> None:
    x = DENSE.x.copy()
    x[[3, 6, 17]] = np.nan
    strategy, log = mirrored(2), _log()
    with strategy.scope():
        plus = SGDPlus(**SGD, seed=4, nonfinite="skip", jit_compile=False)
        model = DENSE.compiled(plus)
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match="left out"):
        model.fit(x, DENSE.y, callbacks=[log], **fit)
    assert np.isnan(log.loss[0]).nonzero()[0].tolist() == [3, 6, 17]
    assert (log.visited >= 0).all()


@pytest.mark.matrix
def test_a_batch_that_is_raised_leaves_nothing() -> None:
    x = DENSE.x.copy()
    x[5] = np.nan
    strategy, log = mirrored(2), _log()
    with strategy.scope():
        plus = SGDPlus(**SGD, seed=4, nonfinite="raise", jit_compile=False)
        model = DENSE.compiled(plus)
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    with pytest.raises(FloatingPointError):
        model.fit(x, DENSE.y, callbacks=[log], **fit)
    assert log.loss.shape == (0, 0)
    model.fit(DENSE.x, DENSE.y, callbacks=[log], **fit)
    assert log.loss.shape == (1, N) and np.isfinite(log.loss).all()
