"""Private names of Keras's optimizers: counters, settings and state per weight.

Read in the sources of Keras 3.13 to 3.15, and of 3.16 before its release.
"""

from __future__ import annotations

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
