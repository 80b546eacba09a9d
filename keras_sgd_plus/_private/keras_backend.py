"""Private names of Keras's TensorFlow backend: its functions and its seeds.

Read in the sources of Keras 3.15.
"""

from __future__ import annotations

from typing import Any

from keras_sgd_plus._private.types import Variable


def lowered_functions() -> dict[str, tuple[Any, list[str]]]:
    """Name -> (module, parameters) of the backend's functions that we wrap.

    `keras.ops` and all layers look them up in these modules at each call. Goes when
    XLA:CPU compiles the native forms well.
    """
    from keras.src.backend.tensorflow import nn, numpy, random

    window = ["strides", "padding", "data_format"]
    return {
        "conv": (nn, ["inputs", "kernel", *window, "dilation_rate"]),
        "max_pool": (nn, ["inputs", "pool_size", *window]),
        "batch_normalization": (
            nn,
            ["x", "mean", "variance", "axis", "offset", "scale", "epsilon"],
        ),
        "moments": (nn, ["x", "axes", "keepdims", "synchronized"]),
        "sparse_categorical_crossentropy": (
            nn,
            ["target", "output", "from_logits", "axis"],
        ),
        "add": (numpy, ["x1", "x2"]),
        "matmul": (numpy, ["x1", "x2"]),
        "take": (numpy, ["x", "indices", "axis"]),
        "dropout": (random, ["inputs", "rate", "noise_shape", "seed"]),
    }


def global_seed_state() -> Any:
    """The seed variable that `keras.random` uses without a seed, if there is one."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def is_seed(variable: Variable) -> bool:
    """Whether it is the state of a `keras.random.SeedGenerator`.

    By the name that Keras gives it: generators are found in layers, but also in losses,
    metrics and plain attributes. Goes when Keras lists them.
    """
    return variable.name == "seed_generator_state"


def draw_seed(seed: Any) -> Any:
    """The seed tensor of the next draw, which a `SeedGenerator` counts; (2,)."""
    from keras.src.backend.tensorflow.random import _cast_seed
    from keras.src.random.seed_generator import draw_seed

    return _cast_seed(draw_seed(seed))
