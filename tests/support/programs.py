"""Random programs: what a user calls one after the other, on SGDPlus and on Keras.

A `Program` has two models from the same weights. `ours` trains with SGDPlus on batches,
`theirs` with Keras's SGD at `batch_size=1`. Each step is done to both, and everything
that it shows is compared.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus, find_learning_rate
from tests.support.structures import assert_alike

N = 72  # a search needs 64 updates
BATCHES = (5, 8, 24)
# Of values that are compared: far below one update, above rounding that adds up.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def _mlp(options: random.Random) -> Any:
    kind = options.choice(("tanh", "gelu", "sigmoid"))
    hidden = layers.Dense(options.choice((3, 8)), kind, kernel_regularizer="l2")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(2)])


def _of_one_in_a_list(options: random.Random) -> Any:
    first = keras.Input((4,))
    hidden = layers.Dense(5, "tanh")(first)
    return keras.Model(
        first, [layers.Dense(2, use_bias=options.random() < 0.5)(hidden)]
    )


def _residual(options: random.Random) -> Any:
    first = keras.Input((4,))
    shared = layers.Dense(4, "tanh")
    x = first
    for _ in range(options.choice((1, 2))):
        x = layers.Add()([x, shared(x)])
    return keras.Model(first, layers.Dense(2)(layers.LayerNormalization()(x)))


def _recurrent(options: random.Random) -> Any:
    kind = options.choice((layers.GRU, layers.LSTM, layers.SimpleRNN))
    return keras.Sequential(
        [keras.Input((4,)), layers.Reshape((4, 1)), kind(3), layers.Dense(2)]
    )


def _convolution(options: random.Random) -> Any:
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Reshape((2, 2, 1)),
            layers.Conv2D(3, 2, padding="same", activation="tanh"),
            *([layers.MaxPooling2D(2)] if options.random() < 0.5 else []),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _augmented(options: random.Random) -> Any:
    zoom = layers.RandomZoom(0.3, seed=options.randrange(9))
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Reshape((2, 2, 1)),
            layers.RandomFlip(seed=4),
            zoom,
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


@keras.saving.register_keras_serializable("programs")
class Own(keras.Model):
    """A subclass with a `call` of its own."""

    def __init__(self, units: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.hidden, self.last = layers.Dense(units, "tanh"), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.last(self.hidden(x) * 0.5)

    def get_config(self) -> dict[str, Any]:
        """Its arguments."""
        return {**super().get_config(), "units": self.units}


def _own(options: random.Random) -> Any:
    model = Own(options.choice((3, 6)))
    model(np.zeros((1, 4), "float32"))
    return model


def _nested(options: random.Random) -> Any:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh")])
    first = keras.Input((4,))
    return keras.Model(first, layers.Dense(2)(inner(inner(first))))


MODELS: dict[str, Callable[[random.Random], Any]] = {
    "mlp": _mlp,
    "one_in_a_list": _of_one_in_a_list,
    "residual": _residual,
    "recurrent": _recurrent,
    "convolution": _convolution,
    "augmented": _augmented,
    "own": _own,
    "nested": _nested,
}


class _Break(keras.callbacks.Callback):
    """Interrupts, or stops, after some examples."""

    def __init__(self, examples: int, batch_size: int, interrupts: bool) -> None:
        super().__init__()
        self.last = -(-examples // batch_size) - 1
        self.interrupts = interrupts

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Interrupts or stops at the end of its batch."""
        if batch == self.last:
            if self.interrupts:
                raise KeyboardInterrupt
            self.model.stop_training = True


def _pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


class Program:
    """Two models in the same state, and random steps.

    Args:
        number: the seed of everything.
        folder: for files.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.options = random.Random(number)
        self.folder = folder
        self.done: list[str] = []
        rng = np.random.default_rng(number)
        self.x = rng.normal(size=(N, 4)).astype("float32")
        self.y = rng.normal(size=(N, 2)).astype("float32")
        self.weights = rng.uniform(0.5, 1.5, N).astype("float32")
        self.rates: dict[str, Any] = {
            "learning_rate": self.options.choice((0.01, 0.003)),
            "momentum": self.options.choice((0.0, 0.8)),
            "nesterov": self.options.random() < 0.3,
            "clipnorm": self.options.choice((None, 0.5)),
        }
        if self.rates["momentum"] == 0:
            self.rates["nesterov"] = False
        self.kind = self.options.choice(list(MODELS))
        state = self.options.getstate()
        self.ours, self.theirs = (self._made(number, state) for _ in range(2))
        self.compile()

    def _made(self, number: int, state: Any) -> Any:
        keras.utils.set_random_seed(number)
        self.options.setstate(state)  # both make the same choices
        return MODELS[self.kind](self.options)

    def compile(self) -> None:
        """Compiles both with new optimizers."""
        metrics = ["mae"] if self.options.random() < 0.5 else None
        loss = self.options.choice(("mse", "mae", keras.losses.Huber(0.7)))
        order = {"order": "given", "seed": 1}
        self.ours.compile(SGDPlus(**self.rates, **order), loss, metrics=metrics)
        self.theirs.compile(
            keras.optimizers.SGD(**self.rates), loss, metrics=copy.copy(metrics)
        )

    def step(self) -> None:
        """Does one random step to both, and compares them."""
        name = self.options.choice([*STEPS])
        self.done.append(name)
        STEPS[name](self)
        self.compare()

    def compare(self) -> None:
        """Raises AssertionError unless both are in the same state."""
        for a, b in zip(self.ours.variables, self.theirs.variables, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=b.path)
        ours, theirs = self.ours.optimizer, self.theirs.optimizer
        assert int(ours.iterations) == int(theirs.iterations)
        np.testing.assert_allclose(ours.learning_rate, theirs.learning_rate)
        if theirs.built:
            slots = [o.momentums if o.momentum else [] for o in (ours, theirs)]
            for a, b in zip(*slots, strict=True):
                np.testing.assert_allclose(a, b, **TOLERANCE)

    # The steps.

    def fit(self, callbacks: Callable[[int], list[Any]] = lambda _: []) -> None:
        """`fit` with some options; what it logs is compared."""
        options: dict[str, Any] = {
            "epochs": self.options.choice((1, 2)),
            "shuffle": False,
            "verbose": 0,
        }
        if self.options.random() < 0.4:
            options["validation_data"] = self.x[:7], self.y[:7]
        if self.options.random() < 0.3:
            options["sample_weight"] = self.weights
        if self.options.random() < 0.2:
            options["initial_epoch"] = 1
            options["epochs"] = 2
        size, steps = self.options.choice(BATCHES), self.options.random() < 0.3
        logs = []
        for model, batch_size in ((self.ours, size), (self.theirs, 1)):
            data: dict[str, Any] = {"x": self.x, "y": self.y, "batch_size": batch_size}
            if steps and "sample_weight" not in options:
                pairs = tf.data.Dataset.from_tensor_slices((self.x, self.y))
                data = {"x": pairs.batch(batch_size)}
            try:
                history = model.fit(**data, **options, callbacks=callbacks(batch_size))
            except KeyboardInterrupt:
                logs.append({})
            else:
                logs.append(history.history)
        assert logs[0].keys() == logs[1].keys()
        for key, values in logs[1].items():
            np.testing.assert_allclose(logs[0][key], values, **TOLERANCE, err_msg=key)

    def interrupt(self) -> None:
        """A `fit` that is interrupted at the end of a batch."""
        self._break(interrupts=True)

    def stop(self) -> None:
        """A `fit` that a callback stops after a batch."""
        self._break(interrupts=False)

    def _break(self, interrupts: bool) -> None:
        # After the first batch, of whatever size.
        sizes: list[int] = []

        def callbacks(batch_size: int) -> list[Any]:
            sizes.append(batch_size)
            return [_Break(sizes[0], batch_size, interrupts)]

        self.fit(callbacks)

    def evaluate(self) -> None:
        """`evaluate` and `predict` are alike."""
        pair = self.ours, self.theirs
        found = [m.evaluate(self.x, self.y, verbose=0, return_dict=True) for m in pair]
        assert found[0].keys() == found[1].keys()
        for key, value in found[1].items():
            np.testing.assert_allclose(found[0][key], value, **TOLERANCE)
        found = [m.predict(self.x[:9], verbose=0) for m in pair]
        assert_alike(found[0], found[1], tolerance=1e-3)

    def train_on_batch(self) -> None:
        """`train_on_batch` on a few examples, and on each of them."""
        count = self.options.choice((1, 3))
        self.ours.train_on_batch(self.x[:count], self.y[:count])
        for i in range(count):
            self.theirs.train_on_batch(self.x[i : i + 1], self.y[i : i + 1])

    def freeze(self) -> None:
        """Freezes a layer, or thaws it, and compiles anew."""
        names = [x for x in self.ours.layers if x.weights]
        number = self.options.randrange(len(names))
        for model in (self.ours, self.theirs):
            layer = [x for x in model.layers if x.weights][number]
            layer.trainable = not layer.trainable
            if not model.trainable_variables:
                layer.trainable = True
        self.compile()

    def compile_anew(self) -> None:
        """Compiles both, with new optimizers."""
        self.compile()

    def assign(self) -> None:
        """Changes weights and the rate by hand."""
        factor = self.options.choice((0.9, 1.1))
        for model in (self.ours, self.theirs):
            model.set_weights([w * np.float32(factor) for w in model.get_weights()])
            model.optimizer.learning_rate = self.rates["learning_rate"] * factor

    def save_and_load(self) -> None:
        """Both are stored, and go on as what is loaded."""
        name = self.options.choice(("model.keras", "weights"))
        for which in ("ours", "theirs"):
            model = getattr(self, which)
            if name == "weights":
                path = self.folder / f"{which}.weights.h5"
                model.save_weights(path)
                model.load_weights(path)
                continue
            path = self.folder / f"{which}.keras"
            before = [v.numpy() for v in model.variables]
            model.save(path)
            loaded = keras.models.load_model(path)
            # Keras stores no seeds of random layers.
            for variable, value in zip(loaded.variables, before, strict=True):
                variable.assign(value)
            setattr(self, which, loaded)

    def copy(self) -> None:
        """Both go on as their copies."""
        how = self.options.choice((copy.deepcopy, _pickled))
        for which in ("ours", "theirs"):
            model = getattr(self, which)
            made = how(model)
            for variable, old in zip(made.variables, model.variables, strict=True):
                variable.assign(old)
            setattr(self, which, made)

    def search(self) -> None:
        """`find_learning_rate` changes the rate of ours alone; theirs gets it, too."""
        found = find_learning_rate(self.ours, self.x, self.y, batch_size=8)
        # A rate that is best may be too high to compare roundings.
        rate = min(float(found.learning_rate), 0.01)
        for model in (self.ours, self.theirs):
            model.optimizer.learning_rate = rate


STEPS: dict[str, Callable[[Program], None]] = {
    "fit": Program.fit,
    "fit again": Program.fit,
    "interrupt": Program.interrupt,
    "stop": Program.stop,
    "evaluate": Program.evaluate,
    "train_on_batch": Program.train_on_batch,
    "freeze": Program.freeze,
    "compile": Program.compile_anew,
    "assign": Program.assign,
    "save_and_load": Program.save_and_load,
    "copy": Program.copy,
    "search": Program.search,
}
