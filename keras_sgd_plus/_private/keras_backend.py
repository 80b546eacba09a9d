"""Private names of Keras's TensorFlow backend: its functions and its seeds.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._private import names
from keras_sgd_plus._private.types import Variable

# Keras 3.16 moves two modules into `ops` (https://github.com/keras-team/keras/pull/23642).
# For some months its sources had them in both places. The old ones go with Keras 3.15.
_NN = ("keras.src.backend.tensorflow.ops.nn", "keras.src.backend.tensorflow.nn")
_NUMPY = (
    "keras.src.backend.tensorflow.ops.numpy",
    "keras.src.backend.tensorflow.numpy",
)
_RANDOM = ("keras.src.backend.tensorflow.random",)
_SEEDS = "keras.src.random.seed_generator"
_PLACES = {
    "conv": _NN,
    "depthwise_conv": _NN,
    "separable_conv": _NN,
    "max_pool": _NN,
    "batch_normalization": _NN,
    "moments": _NN,
    "sparse_categorical_crossentropy": _NN,
    "add": _NUMPY,
    "matmul": _NUMPY,
    "take": _NUMPY,
    "dropout": _RANDOM,
}


def lowered_functions() -> dict[str, list[ModuleType]]:
    """Name -> modules that have it, of the backend's functions that we wrap.

    `keras.ops` and all layers look them up in one of these modules at each call. A
    function that is missing, or whose lowered form lacks what it needs, has none. Goes
    when XLA:CPU compiles the native forms well.
    """
    found = {
        name: [m for m in names.modules(*places) if callable(getattr(m, name, None))]
        for name, places in _PLACES.items()
    }
    if not _can_draw_seeds():
        found["dropout"] = []
    return found


def global_seed_state() -> Any:
    """The seed variable that `keras.random` uses without a seed, if there is one.

    Goes when Keras has a public name for it.

    Raises:
        RuntimeError: this version of Keras keeps it elsewhere.
    """
    key = names.attribute(names.module(_SEEDS), "GLOBAL_SEED_GENERATOR")
    state = names.module("keras.src.backend.common.global_state")
    generator = names.call(state, "get_global_attribute", key)
    return None if generator is None else generator.state


def found_global_seed_state() -> Any:
    """The same, and None where it is kept elsewhere; tracing finds it if it is used."""
    try:
        return global_seed_state()
    except RuntimeError:
        return None


def is_seed(variable: Variable) -> bool:
    """Whether it is the state of a `keras.random.SeedGenerator`.

    By the name that Keras gives it: generators are found in layers, but also in losses,
    metrics and plain attributes. Goes when Keras lists them.
    """
    return variable.name == seed_name()


@functools.cache
def seed_name() -> str:
    """The name of such a state; asked for once before a loop, which may make none."""
    # A generator without a name of its own would take a number from the user's next.
    with tf.init_scope():
        return keras.random.SeedGenerator(seed=0, name="seed_name").state.name


def draw_seed(seed: Any) -> Any:
    """The seed tensor of the next draw, which a `SeedGenerator` counts; (2,)."""
    drawn = names.call(names.module(_SEEDS), "draw_seed", seed)
    return names.call(names.module(_RANDOM[0]), "_cast_seed", drawn)


def _can_draw_seeds() -> bool:
    functions = [
        getattr(module, name, None)
        for place, name in ((_SEEDS, "draw_seed"), (_RANDOM[0], "_cast_seed"))
        for module in names.modules(place)
    ]
    return len(functions) == 2 and all(
        callable(f) and list(inspect.signature(f).parameters) == ["seed"]
        for f in functions
    )
