"""Runs a story, the stages of a training, with SGDPlus and with Keras's SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_sgd_plus import SGDPlus
from tests.support.twins import Pair, snapshot


class Run:
    """One of two equal trainings: with SGDPlus in batches of 7, or SGD one by one."""

    def __init__(
        self, make_model: Callable[[], Any], is_ours: bool, jit_compile: Any = "auto"
    ) -> None:
        keras.utils.set_random_seed(1)
        self.model, self.is_ours = make_model(), is_ours
        self.jit_compile = jit_compile  # of SGDPlus
        self.before = snapshot(_Compiled(self.model))
        self.logs: dict[str, list[float]] = {}

    def optimizer(self, **kwargs: Any) -> Any:
        kwargs = {"learning_rate": 0.05, "momentum": 0.9, **kwargs}
        if self.is_ours:
            return SGDPlus(order="given", jit_compile=self.jit_compile, **kwargs)
        return keras.optimizers.SGD(**kwargs)

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:
        kwargs = {"loss": "mse", **kwargs}
        self.model.compile(optimizer or self.optimizer(), **kwargs)

    def fit(self, x: Any, y: Any, **kwargs: Any) -> None:
        batch_size = 7 if self.is_ours else 1
        kwargs = {"batch_size": batch_size, "shuffle": False, "verbose": 0, **kwargs}
        for name, values in self.model.fit(x, y, **kwargs).history.items():
            self.logs.setdefault(name, []).extend(values)


class _Compiled:
    # Has what `snapshot` needs of a model without an optimizer.
    def __init__(self, model: Any) -> None:
        self.optimizer = keras.optimizers.SGD()
        self.trainable_variables = model.trainable_variables
        self.non_trainable_variables = model.non_trainable_variables


def run_pair(
    make_model: Callable[[], Any],
    story: Callable[[Run], None],
    jit_compile: Any = "auto",
) -> Pair:
    """The same story for both; `jit_compile` is that of SGDPlus."""
    runs = [Run(make_model, is_ours, jit_compile) for is_ours in (True, False)]
    for run in runs:
        keras.utils.set_random_seed(2)
        story(run)
    ours, theirs = runs
    return Pair(ours.model, theirs.model, ours.logs, theirs.logs, ours.before)
