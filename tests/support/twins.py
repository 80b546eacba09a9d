"""Train a model with SGDPlus and its twin with Keras's SGD, and compare everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_sgd_plus import SGDPlus
from tests.support.compare import Difference, Snapshot, difference, snapshot

Arguments = dict[str, Any] | Callable[[], dict[str, Any]] | None

BATCH_SIZE = 7  # does not divide the usual 30 examples: the last batch is shorter


@dataclass
class Pair:
    """Two models after the same training, and what they logged."""

    ours: Any
    theirs: Any
    our_logs: dict[str, list[float]]
    their_logs: dict[str, list[float]]
    before: Snapshot

    def difference(self) -> Difference:
        return difference(self.before, snapshot(self.ours), snapshot(self.theirs))


def train_pair(
    make_model: Callable[[], Any],
    x: Any,
    y: Any = None,
    *,
    sgd: Arguments = None,
    plus: dict[str, Any] | None = None,
    compile: Arguments = None,
    fit: Arguments = None,
    our_fit: dict[str, Any] | None = None,
    their_fit: dict[str, Any] | None = None,
    our_compile: dict[str, Any] | None = None,
) -> Pair:
    """Fits SGDPlus in given order, and SGD with `batch_size=1, shuffle=False`.

    Args:
        make_model: returns an equal fresh model at each call, not compiled.
        x, y: what `fit` takes; `our_fit` and `their_fit` may replace them.
        sgd: arguments of both optimizers, or a function that returns them and is
            called for each, so that schedules are not shared. Defaults to momentum 0.9.
        plus: arguments of SGDPlus alone. Defaults to `order="given"`.
        compile: arguments of both `compile` calls, or a function that returns them,
            so that metrics and losses are not shared.
        fit: arguments of both `fit` calls, or a function that returns them, so that
            callbacks are not shared.
    """
    runs = []
    for is_ours in (True, False):
        of_sgd = {"learning_rate": 0.02, "momentum": 0.9, **_each(sgd)}
        of_compile = {"loss": "mse", **_each(compile)}
        keras.utils.set_random_seed(1)
        model = make_model()
        if is_ours:
            optimizer: Any = SGDPlus(**of_sgd, **{"order": "given", **(plus or {})})
            extra = {"batch_size": BATCH_SIZE, **(our_fit or {})}
            model.compile(optimizer, **{**of_compile, **(our_compile or {})})
        else:
            optimizer = keras.optimizers.SGD(**of_sgd)
            extra = {"batch_size": 1, **(their_fit or {})}
            model.compile(optimizer, **of_compile)
        # A lazily built model has no variables yet: its change is measured from zeros.
        before = snapshot(model) if model.built else {}
        arguments = {"x": x, "y": y, "shuffle": False, "verbose": 0, **_each(fit)}
        arguments.update(extra)
        arguments = {k: v for k, v in arguments.items() if v is not None}
        runs.append((model, model.fit(**arguments).history, before))
    (ours, our_logs, before), (theirs, their_logs, _) = runs
    return Pair(ours, theirs, our_logs, their_logs, before)


def _each(arguments: Arguments) -> dict[str, Any]:
    return dict(arguments() if callable(arguments) else arguments or {})


def assert_same(pair: Pair, tolerance: float | None = None, logs: float = 2e-5) -> None:
    """Weights, optimizer state and logs agree; counters and seeds exactly.

    The tolerance is 1e-6 * sqrt(updates) of the largest change unless given: float32
    rounding that adds up like a random walk, far below one update.
    """
    optimizer = pair.theirs.optimizer
    steps = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    updates = int(optimizer.iterations) * steps
    assert updates > 0
    bound = 1e-6 * updates**0.5 if tolerance is None else tolerance
    relative = pair.difference().relative
    assert relative <= bound, f"{relative:.1e} apart, bound {bound:.1e}"
    assert pair.our_logs.keys() == pair.their_logs.keys()
    for name, theirs in pair.their_logs.items():
        np.testing.assert_allclose(
            pair.our_logs[name], theirs, rtol=logs, atol=logs, err_msg=name
        )


def dense_model(
    inputs: int = 5, units: int = 6, outputs: int = 2, **kwargs: Any
) -> keras.Model:
    """A small network with one hidden layer."""
    hidden = keras.layers.Dense(units, activation="tanh", **kwargs)
    return keras.Sequential(
        [keras.Input((inputs,)), hidden, keras.layers.Dense(outputs)]
    )


def optimizer_of(cls: type, *args: Any) -> Any:
    """An optimizer of a class. SGDPlus visits in given order, without XLA."""
    plus = {"order": "given", "jit_compile": False}
    return cls(*args, **(plus if cls is SGDPlus else {}))


def batch_size_of(cls: type) -> int:
    """The batch size with which an optimizer of the class makes the same updates."""
    return BATCH_SIZE if cls is SGDPlus else 1


def linear_model(
    inputs: int = 5, outputs: int = 2, activation: str | None = None
) -> keras.Model:
    """The smallest model: one Dense layer."""
    layer = keras.layers.Dense(outputs, activation)
    return keras.Sequential([keras.Input((inputs,)), layer])


def dense_data(
    num_examples: int = 30, inputs: int = 5, outputs: int = 2, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 x of shape (num_examples, inputs), y that depends on it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_examples, inputs)).astype("float32")
    y = np.sin(x @ rng.normal(size=(inputs, outputs))).astype("float32")
    return x, y


def assert_engaged(pair: Pair, engagements: list[str], updates: int) -> None:
    """The loop trained our model, no other one, and counted every example."""
    assert engagements and set(engagements) == {pair.ours.name}
    optimizer = pair.ours.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert int(inner._iterations) == updates


class Interrupted(Exception):
    """Stands for a kill in tests of one process."""


class Interrupt(keras.callbacks.Callback):
    """Ends a run at the end of one of its batches."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self.place = epoch, batch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.place:
            raise Interrupted
