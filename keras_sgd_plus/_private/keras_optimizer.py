"""Private names of Keras's optimizers: counters, settings and state per weight.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.

Private names of Keras's TensorFlow backend: its functions and its seeds.

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
from keras_sgd_plus._private.types import Optimizer, Variable

# Attributes of `keras.optimizers.SGD` that hold a variable, or None, per weight. Keras
# makes them in `build`.
VELOCITIES = "momentums"
AVERAGES = "_model_variables_moving_average"
ACCUMULATORS = "_accumulated_gradients"

# Methods by which Keras makes an update, in its optimizers and in its
# `LossScaleOptimizer`. `apply_gradients` and `apply` call all the others.
UPDATE_METHODS = (
    "apply_gradients",
    "apply",
    "update_step",
    "_backend_apply_gradients",
    "_backend_update_step",
    "_distributed_tf_update_step",
    "_all_reduce_sum_gradients",
    "_filter_empty_gradients",
    "_overwrite_variables_directly_with_gradients",
    "_clip_gradients",
    "_clip_by_norm",
    "_apply_weight_decay",
    "_get_current_learning_rate",
    "_backend_increment_gradient_accumulators",
    "_backend_reset_gradient_accumulators",
    "_update_model_variables_moving_average",
    "_overwrite_model_variables_with_average_value",
    "assign",
    "assign_add",
    "assign_sub",
)
SCALED_UPDATE_METHODS = (
    "apply_gradients",
    "apply",
    "check_finite",
    "_tf_apply",
    "_common_apply",
    "_stateful_handle_finite_grads",
    "_stateful_handle_non_finite_grads",
)


def need_slot(attribute: str) -> None:
    """Raises RuntimeError where Keras does not keep variables in that attribute.

    An optimizer that was built without a setting has none either, so this builds one
    that has all of them.
    """
    with tf.init_scope():
        settings = {"use_ema": True, "gradient_accumulation_steps": 2}
        probe = keras.optimizers.SGD(momentum=0.5, **settings)
        probe.build([keras.Variable([0.0])])
    names.attribute(probe, attribute)


def raw_iterations(optimizer: Optimizer) -> Any:
    """The counter of updates before division by `gradient_accumulation_steps`."""
    return names.attribute(optimizer, "_iterations")


def built_variables(optimizer: Optimizer) -> list[Any]:
    """The trainable variables that the optimizer was built with."""
    return list(names.attribute(optimizer, "_trainable_variables"))


def schedule(optimizer: Optimizer) -> Any:
    """The schedule or callable of the learning rate; None if a variable holds it."""
    source = names.attribute(optimizer, "_learning_rate")
    return None if isinstance(source, keras.Variable) else source


def decays(optimizer: Optimizer, variable: Variable) -> bool:
    """Whether weight decay applies, by Keras's own test on the `tf.Variable`.

    The name that `exclude_from_weight_decay` matches is that of the `tf.Variable`, so
    the test has to see that, outside any scope that hides it.
    """
    return names.call(optimizer, "_use_weight_decay", native(variable))


def variable_index(optimizer: Optimizer, variable: Variable) -> int:
    """The position of a trainable variable among those the optimizer was built with.

    Raises:
        ValueError: the optimizer was built for other variables (Keras's own message).
    """
    names.call(optimizer, "_check_variables_are_known", [variable])
    return names.call(optimizer, "_get_variable_index", variable)


def native(variable: Variable) -> Any:
    """The `tf.Variable` of a Keras variable, which may be one per replica."""
    return variable if isinstance(variable, tf.Variable) else variable.value


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
