"""Private names of Keras's optimizers, and of the backend and the seeds behind them.

Of an optimizer: its counter, its settings, its state per weight, and the methods that
make an update, which a user's class may replace. Of the TensorFlow backend: the
functions that `_forms` lowers, and the seeds that its random ones draw.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.random import seed_generator

from keras_sgd_plus._private.types import Tensor, Variable

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


def raw_iterations(optimizer: Any) -> Variable:
    """The counter of updates before division by `gradient_accumulation_steps`."""
    return optimizer._iterations


def built_variables(optimizer: Any) -> list[Variable]:
    """The trainable variables that the optimizer was built with."""
    return list(optimizer._trainable_variables)


def schedule(optimizer: Any) -> LearningRateSchedule | None:
    """The schedule or callable of the learning rate; None if a variable holds it."""
    source = optimizer._learning_rate
    return None if isinstance(source, keras.Variable) else source


def decays(optimizer: Any, variable: Variable) -> bool:
    """Whether weight decay applies, by Keras's own test on the `tf.Variable`.

    The name that `exclude_from_weight_decay` matches is that of the `tf.Variable`, so
    the test has to see that, outside any scope that hides it.
    """
    return optimizer._use_weight_decay(native(variable))


def variable_index(optimizer: Any, variable: Variable) -> int:
    """The position of a trainable variable among those the optimizer was built with.

    Raises:
        ValueError: the optimizer was built for other variables (Keras's own message).
    """
    optimizer._check_variables_are_known([variable])
    return optimizer._get_variable_index(variable)


def native(variable: Variable) -> tf.Variable:
    """The `tf.Variable` of a Keras variable, which may be one per replica."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def lowered_functions() -> dict[str, ModuleType]:
    """Name -> module of the functions of Keras's backend that we wrap.

    `keras.ops` and all layers look them up there at each call. Goes when XLA:CPU
    compiles the native forms well.
    """
    # Keras 3.16 moves two modules into `ops`
    # (https://github.com/keras-team/keras/pull/23642).
    ops: Any = getattr(backend, "ops", backend)
    by_module = {
        ops.nn: (
            *("conv", "depthwise_conv", "separable_conv", "max_pool", "moments"),
            *("batch_normalization", "sparse_categorical_crossentropy"),
        ),
        ops.numpy: ("add", "matmul", "take"),
        backend.random: ("dropout",),
    }
    return {name: module for module, names in by_module.items() for name in names}


def draw_seed(seed: keras.random.SeedGenerator) -> Tensor:
    """The seed tensor of the next draw, which a `SeedGenerator` counts; (2,)."""
    random: Any = backend.random
    return random._cast_seed(seed_generator.draw_seed(seed))


def global_seed_state() -> Variable | None:
    """The seed variable that `keras.random` uses without a seed, if there is one.

    Goes when Keras has a public name for it.
    """
    found = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    return None if found is None else found.state


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
