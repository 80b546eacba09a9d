"""What a layer costs that XLA refuses at the front of a model: it runs ahead.

`python -m benchmarks front`. The parts take turns, by `fit` on batches of 1,000: the
layer alone, in a loop of single examples outside XLA; a small CNN without the layer;
the CNN behind it; and the same with `jit_compile=False`, which the layer would
otherwise ask for. All make the same updates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.cost.options import Options
from benchmarks.shared import command

REPEATS = 9
EXAMPLES, _BATCH, _SIDE = 2_000, 1_000, 28
_SLOW = 3  # turns of the arm without XLA
_FIRST, AHEAD, WITHOUT = "layer and CNN, each alone", "CNN behind it", "without XLA"
_LAYERS = ("RandomZoom", "RandomRotation", "RandomTranslation")


@dataclass(frozen=True)
class Front(Options):
    """Microseconds per example of `fit`, by arm."""

    @property
    def met(self) -> bool:
        """Whether the CNN behind the layer costs little more than both alone."""
        return self.ratios[AHEAD] <= self.target


def measure(arguments: list[str]) -> Iterator[Front]:
    """Yields each layer."""
    for name in command.options("front", __doc__, arguments, _LAYERS).names:
        alone, cnn = _alone(name), _fitted("")[0]
        (ahead, model), (slow, twin) = _fitted(name), _fitted(name, jit_compile=False)
        runs = {"alone": alone, "cnn": cnn, AHEAD: ahead, WITHOUT: slow}
        times: dict[str, list[float]] = {arm: [] for arm in runs}
        for turn in range(REPEATS):
            for arm, run in runs.items():
                if arm != WITHOUT or turn < _SLOW:
                    times[arm].append(run())
        found = {arm: statistics.median(times[arm]) for arm in runs}
        first = found.pop("alone") + found.pop("cnn")
        # Both have run once more than their turns.
        agree = _same_after(model, twin, REPEATS - _SLOW)
        yield Front(name, {_FIRST: first, **found}, 1.25, agree)


def _layer(name: str) -> Any:
    import keras

    sizes = (0.2, 0.2) if name == "RandomTranslation" else (0.2,)
    return getattr(keras.layers, name)(*sizes, seed=1)


def _data() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, _SIDE, _SIDE, 1)).astype("float32")
    return x, rng.integers(0, 10, EXAMPLES)


def _fitted(name: str, **settings: Any) -> tuple[Callable[[], float], Any]:
    # An epoch of the CNN, behind a layer if one is named.
    import keras
    from keras import layers

    from keras_sgd_plus import SGDPlus

    keras.utils.set_random_seed(1)
    front = [_layer(name)] if name else []
    model = keras.Sequential(
        [
            keras.Input((_SIDE, _SIDE, 1)),
            *front,
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(SGDPlus(1e-3, seed=1, **settings), "sparse_categorical_crossentropy")
    x, y = _data()

    def run() -> float:
        begun = time.perf_counter()
        model.fit(x, y, batch_size=_BATCH, shuffle=False, verbose=0)
        return (time.perf_counter() - begun) / EXAMPLES * 1e6

    run()
    return run, model


def _alone(name: str) -> Callable[[], float]:
    # The layer on one example after the other, seeds carried along.
    import keras
    import tensorflow as tf

    layer, (x, _) = _layer(name), _data()
    (seed,) = [v for v in layer.variables if "seed" in v.path]
    shape = layer(x[:1], training=True).shape

    @tf.function(autograph=False)
    def epoch(x: Any) -> Any:
        def body(i: Any, state: Any, found: Any) -> Any:
            with keras.StatelessScope(state_mapping=[(seed, state)]) as scope:
                output = layer(tf.gather(x, tf.reshape(i, (1,))), training=True)
                state = scope.get_current_value(seed)
            return i + 1, state, found.write(i, output)

        found = tf.TensorArray(tf.float32, x.shape[0], element_shape=shape)
        return tf.while_loop(
            lambda i, *_: i < x.shape[0],
            body,
            (0, tf.convert_to_tensor(seed.value), found),
            parallel_iterations=1,
        )[2].stack()

    def run() -> float:
        begun = time.perf_counter()
        for start in range(0, EXAMPLES, _BATCH):
            epoch(x[start : start + _BATCH])
        return (time.perf_counter() - begun) / EXAMPLES * 1e6

    run()
    return run


def _same_after(model: Any, twin: Any, epochs: int) -> bool:
    # Whether both have the same weights, after some more epochs of the second.
    import numpy as np

    x, y = _data()
    twin.fit(x, y, batch_size=_BATCH, shuffle=False, verbose=0, epochs=epochs)
    pairs = zip(model.get_weights(), twin.get_weights(), strict=True)
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
