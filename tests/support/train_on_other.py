"""Programs that train with a private name in its place each; see `private_names`.

Each returns how far its training is from the one it has to equal.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import ExactResume, SeededArrays, SGDPlus

N = 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype("float32")
Y = RNG.normal(size=(N, 2)).astype("float32")
SETTINGS = {
    "momentum": 0.5,
    "weight_decay": 0.01,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
}


def difference(
    make: Callable[[], Any], x: Any, y: Any, loss: Any, sgd: Any, plus: Any
) -> float:
    """The largest one between weights, statistics and logs."""
    runs = []
    for cls, size, own in (
        (SGDPlus, len(x), {"order": "given", **plus}),
        (keras.optimizers.SGD, 1, {}),
    ):
        keras.utils.set_random_seed(1)
        model = make()
        use_xla = plus.get("jit_compile", True)
        own_loss = loss() if isinstance(loss, type) else loss
        model.compile(cls(0.01, **sgd, **own), own_loss, jit_compile=use_xla)
        seen = model.fit(x, y, batch_size=size, epochs=2, shuffle=False, verbose=0)
        runs.append([*model.get_weights(), np.array(seen.history["loss"])])
    return max(float(np.abs(a - b).max()) for a, b in zip(*runs, strict=True))


def dense() -> Any:
    layers = [keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((3,)), *layers])


def plain() -> float:
    return difference(dense, X, Y, "mse", SETTINGS, {"jit_compile": False})


def one_example() -> float:
    """Of one example, the order is known, and is drawn nonetheless."""
    plus = {"order": "reshuffle", "jit_compile": False}
    return difference(dense, X[:1], Y[:1], "mse", {}, plus)


@keras.saving.register_keras_serializable()
class Direct(keras.layers.Layer):
    """Reads the `tf.Variable` of its weight by itself."""

    def build(self, shape: Any) -> None:
        self.native = self.add_weight((shape[-1], 2)).value

    def call(self, x: Any) -> Any:
        return tf.matmul(x, self.native)


def direct() -> float:
    def make() -> Any:
        return keras.Sequential([keras.Input((3,)), Direct()])

    return difference(make, X, Y, "mse", {}, {"jit_compile": False})


def fixed_size() -> float:
    """Of one example, for which both optimizers can be given such a model."""

    def make() -> Any:
        return keras.Sequential([keras.Input((3,), batch_size=1), *dense().layers])

    return difference(make, X[:1], Y[:1], "mse", {}, {"jit_compile": False})


def skip() -> float:
    plus = {"jit_compile": False, "nonfinite": "skip"}
    return difference(dense, X, Y, "mse", {}, plus)


def images() -> float:
    layers = [
        keras.layers.Conv2D(6, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.Conv2D(2, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3, seed=1),
        keras.layers.Dense(200),
    ]
    x = RNG.normal(size=(N, 6, 6, 1)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make() -> Any:
        copies = [type(e).from_config(e.get_config()) for e in layers]
        return keras.Sequential([keras.Input((6, 6, 1)), *copies])

    return difference(make, x, np.arange(N), loss, {}, {})


def table() -> float:
    def make() -> Any:
        layers = [keras.layers.Embedding(1100, 8), keras.layers.Flatten()]
        return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(2)])

    x = RNG.integers(0, 1100, (N, 2))
    return difference(make, x, Y, "mse", {"momentum": 0.5}, {})


@keras.saving.register_keras_serializable()
class Noise(keras.layers.Layer):
    """Draws from the generator that all of Keras shares."""

    def call(self, x: Any) -> Any:
        return x + keras.random.normal((1, 3))


def seeds() -> float:
    def make() -> Any:
        return keras.Sequential([keras.Input((3,)), Noise(), keras.layers.Dense(2)])

    return difference(make, X, Y, "mse", {}, {"jit_compile": False})


class Lazy(keras.losses.Loss):
    """Makes a variable when it is first called."""

    scale: Any = None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.scale is None:
            self.scale = keras.Variable(np.float32(2), trainable=False)
        return self.scale * keras.ops.square(y_true - y_pred)


def variables_in_call() -> float:
    return difference(dense, X, Y, Lazy, {}, {"jit_compile": False})


def _resumed(fit: dict[str, Any]) -> Any:
    # The same run twice: at once, and in two processes' worth of models.
    weights = []
    for stops in ((2,), (1, 2)):
        with tempfile.TemporaryDirectory() as folder:
            for epochs in stops:
                keras.utils.set_random_seed(1)
                layers = [keras.layers.Dropout(0.3), keras.layers.Dense(2)]
                model = keras.Sequential([keras.Input((3,)), *layers])
                model.compile(SGDPlus(0.01, seed=1, jit_compile=False), "mse")
                resume = ExactResume(folder)
                model.fit(epochs=epochs, callbacks=[resume], verbose=0, **fit)
            weights.append(model.get_weights())
    return max(float(np.abs(a - b).max()) for a, b in zip(*weights, strict=True))


def resume() -> float:
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    data = data.shuffle(N, seed=1, reshuffle_each_iteration=False).batch(3)
    return _resumed({"x": data})


def batches() -> float:
    data = SeededArrays(X, Y, batch_size=3, seed=1)
    return _resumed({"x": data, "shuffle": False})


def generator() -> float:
    def generate() -> Any:
        while True:
            yield X, Y

    return _resumed({"x": generate(), "steps_per_epoch": 1})


def _refused(fit: dict[str, Any]) -> float:
    # ExactResume has to notice that Keras would draw the order anew.
    try:
        _resumed(fit)
    except ValueError as error:
        return 0.0 if "same batches" in str(error) else float("inf")
    return float("inf")


def shuffled_arrays() -> float:
    return _refused({"x": X, "y": Y, "shuffle": True})


def shuffled_batches() -> float:
    data = SeededArrays(X, Y, batch_size=3, seed=1)
    return _refused({"x": data, "shuffle": True})


def shuffled_dataset() -> float:
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return _refused({"x": data.shuffle(N, reshuffle_each_iteration=False).batch(3)})


def _distributed(strategy: Any) -> float:
    with strategy.scope():
        model = dense()
        model.compile(SGDPlus(0.01, order="given", jit_compile=False), "mse")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    model.fit(data, verbose=0)
    return float("nan")  # only errors are expected here


def replicas() -> float:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(2)],
    )
    return _distributed(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))


def worker() -> float:
    return _distributed(tf.distribute.MultiWorkerMirroredStrategy())


def workers() -> float:
    strategy: Any = tf.distribute.MultiWorkerMirroredStrategy()
    strategy.extended._in_multi_worker_mode = lambda: True  # as if there were others
    return _distributed(strategy)


def run(program: str) -> dict[str, Any]:
    """The difference, or the error, and our warnings."""
    told: dict[str, Any] = {"difference": None, "error": None, "text": ""}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            told["difference"] = globals()[program]()
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            told["error"] = type(error).__name__
            told["text"] = "\n".join([str(error), *notes])
    ours = [w for w in caught if "SGDPlus wraps" in str(w.message)]
    return {**told, "warnings": [str(w.message) for w in ours]}
