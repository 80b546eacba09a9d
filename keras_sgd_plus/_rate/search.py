"""find_learning_rate: which learning rate suits a model and its data.

The search trains with one candidate after the other, through the train function of
`fit`, and puts everything back afterwards. What is measured, and which candidate is
best, is told in `choice`; how the data are read, in `batches`.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus._batch import step
from keras_sgd_plus._fit import hooks
from keras_sgd_plus._loop import examples
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import keras_model, keras_optimizer
from keras_sgd_plus._private.types import Model, Structure, Variable
from keras_sgd_plus._rate.batches import Batches
from keras_sgd_plus._rate.choice import Trial, alike, best_of
from keras_sgd_plus._report import bad_examples, running_sums
from keras_sgd_plus._rule.ours import per_example, unwrap

MIN_UPDATES = 64
LIMITS = (1e-9, 1e3)
_STEP = math.sqrt(10)  # from one candidate to the next
_MOST_VISITS = 60_000
_CONSTANT = 1 / 3  # of the rate for a falling one


class _Kept:
    """Everything that training changes, as it was, to be put back.

    Args:
        model: in training, built.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._values: dict[int, tuple[Any, tf.Tensor]] = {}
        outer: Any = model.optimizer
        inner = unwrap(outer)
        self.add([*model.variables, *model.metrics_variables])
        self.add([*outer.variables, *inner.variables])
        self.add([*running_sums.carried(inner), bad_examples.place_of(inner)])
        shared = keras_optimizer.global_seed_state()
        self.add([] if shared is None else [shared])
        self._ledgers = bad_examples.kept(inner)
        self._stops = model.stop_training
        self._random = random.getstate()
        self._numpy = np.random.get_state()

    def add(self, variables: Sequence[Variable | tf.Variable]) -> None:
        """Keeps the values of more variables, as they are now."""
        for variable in variables:
            native = keras_optimizer.native(variable)
            if id(native) not in self._values:
                self._values[id(native)] = native, tf.identity(native)

    def put_back(self) -> None:
        """Gives all their values of before."""
        for variable, value in self._values.values():
            variable.assign(value)
        self._ledgers.put_back()
        self._model.stop_training = self._stops
        random.setstate(self._random)
        np.random.set_state(self._numpy)
