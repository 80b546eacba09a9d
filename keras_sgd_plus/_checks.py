"""Every check of arguments, models and batches.

Messages say what was expected, what was received and how to fix it, in that order.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sgd_plus import _examples, _keras, _messages

ORDERS = ("reshuffle", "given")


def backend() -> None:
    """Raises RuntimeError on another Keras backend than TensorFlow."""
    name = keras.backend.backend()
    if name != "tensorflow":
        raise RuntimeError(_messages.other_backend(name))


def examples_per_update(value: Any) -> int | None:
    """Gives None or a Python int; raises if the argument is no int or out of range."""
    if value is None:
        return None
    found = _integer(value)
    # TensorFlow holds the positions of a group as a constant: more take gigabytes.
    if found is None or not 1 <= found <= 2**24:
        error = TypeError if found is None else ValueError
        raise error(_messages.argument(examples_per_update=value))
    return found


def order(value: Any) -> None:
    """Raises unless one of the orders."""
    if not isinstance(value, str) or value not in ORDERS:
        raise ValueError(_messages.argument(order=value))


def seed(value: Any) -> int | None:
    """Gives None or a Python int; raises if the argument is no int of 63 bits."""
    if value is None:
        return None
    found = _integer(value)
    if found is None or not 0 <= found < 2**63:
        error = TypeError if found is None else ValueError
        raise error(_messages.argument(seed=value))
    return found


def jit_compile(value: Any) -> bool | str:
    """Gives "auto", True or False; raises if the argument is none of them."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if not isinstance(value, str) or value != "auto":
        raise ValueError(_messages.argument(jit_compile=value))
    return value


# Arguments of keras.optimizers.SGD: what it cannot train with, though it says so late,
# in TensorFlow's words or never. The rest, and what is out of range, is left to it.


def learning_rate(value: Any) -> None:
    """Raises for a float that is not finite, and a callable that takes arguments."""
    schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(_messages.argument(learning_rate=value))
    if callable(value) and not schedule and not _takes_nothing(value):
        raise TypeError(_messages.argument(learning_rate=value))


def momentum(value: Any) -> None:
    """Raises for NaN."""
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(_messages.argument(momentum=value))


_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
_TRAINS: dict[str, Callable[[float], bool]] = {  # with others there is only NaN
    "weight_decay": math.isfinite,
    "clipnorm": lambda x: x != math.inf,
    "clipvalue": lambda x: True,
    "global_clipnorm": lambda x: x != math.inf,
    "ema_momentum": lambda x: not math.isnan(x),
    "loss_scale_factor": lambda x: x != 0 and math.isfinite(x),
}


def number(**argument: Any) -> Any:
    """Gives a float; raises if the argument is no number, or one that gives only NaN.

    None comes back, what Keras takes for no clipping, and a variable, which may change.
    """
    ((name, value),) = argument.items()
    if value is None and name != "ema_momentum":
        return value
    if name in _CLIPS and _is_false(value):
        return value
    changes = isinstance(value, (tf.Variable, keras.Variable))
    found, error = math.nan, None
    try:
        found = _float(value)
        if not _TRAINS[name](found):
            error = ValueError
    except OverflowError:
        error = ValueError
    except Exception:  # whatever the conversion of an object raises
        error = TypeError
    if changes and name in _CLIPS:  # they are compared in Python, once
        error = TypeError
    if error is not None:
        raise error(_messages.argument(**argument))
    return value if changes else found


def count(**argument: Any) -> Any:
    """Gives a Python int; raises if the argument is no integer, or too large for Keras.

    What Keras takes for "off" comes back.
    """
    ((_, value),) = argument.items()
    if _is_false(value) or isinstance(value, (bool, np.bool_)):
        return value
    one = isinstance(value, np.ndarray) and value.size == 1
    found = _integer(value.item() if one else value)
    if found is None or found >= 2**63:
        error = TypeError if found is None else ValueError
        raise error(_messages.argument(**argument))
    return found


def flag(**argument: Any) -> bool:
    """Gives True or False; raises if the argument has no truth value."""
    ((_, value),) = argument.items()
    try:
        return bool(value)
    except Exception:  # of an array, a variable, a symbolic tensor
        raise TypeError(_messages.argument(**argument)) from None


def _float(value: Any) -> float:
    scalar = np.asarray(value).item()
    if isinstance(scalar, (str, bytes)):
        raise TypeError
    return float(scalar)


def _integer(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except Exception:  # TypeError, and AttributeError of a tensor
        return None


def _is_false(value: Any) -> bool:
    try:
        return not value
    except Exception:  # as in `flag`
        return False


def _takes_nothing(function: Any) -> bool:
    if isinstance(function, keras.Layer):  # which hides what its `call` takes
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # it does not say, as many builtins do not
        return not isinstance(function, type)
    return True


def strategy() -> None:
    """Raises NotImplementedError under several replicas of `tf.distribute`."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise NotImplementedError(_messages.several_replicas(replicas))


def rectangular(data: Any) -> None:
    """Raises ValueError for an object array: rows of several lengths, say."""
    for leaf in keras.tree.flatten(data):
        if getattr(leaf, "dtype", None) != np.dtype("O"):
            continue
        try:
            tf.convert_to_tensor(leaf)  # strings are objects too, and fine
        except (TypeError, ValueError):
            raise ValueError(_messages.objects(leaf.shape)) from None


def kinds(model: Any, data: Any) -> None:
    """Raises for text where Keras would cast it to numbers, and for a loss without y.

    TypeError and ValueError. Not checked: an input that is not declared, a model or
    loss that does something else with y.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    inputs = getattr(model, "inputs", None)
    if inputs and all(tensor.dtype != "string" for tensor in inputs):
        _refuse_text("x", x)
    losses = keras.tree.flatten(getattr(model, "loss", None))
    stock = getattr(type(model), "compute_loss", None) is keras.Model.compute_loss
    if stock and losses and all(_casts(loss) for loss in losses):
        axes = [getattr(leaf, "shape", ()) != () for leaf in keras.tree.flatten(x)]
        if y is None and all(axes):  # else `batch` has something to say of x
            raise ValueError(_messages.no_target())
        _refuse_text("y", y)
        _refuse_text("sample_weight", sample_weight)


def _casts(loss: Any) -> bool:
    if isinstance(loss, keras.Loss):
        return type(loss).__call__ is keras.Loss.__call__
    return isinstance(loss, str) or inspect.isfunction(loss)


def _refuse_text(name: str, part: Any) -> None:
    for leaf in keras.tree.flatten(part):
        dtype = getattr(leaf, "dtype", None)
        if dtype is tf.string or getattr(dtype, "kind", "") in ("S", "U"):
            raise TypeError(_messages.text(name, leaf.shape))


def batch(named_leaves: Sequence[tuple[str, Any]]) -> tuple[Any, list[Any]]:
    """The number of examples, an int or () int32, and the assertions it rests on.

    What is known while tracing raises ValueError; the rest is asserted when the batch
    runs (`tf.errors.InvalidArgumentError`). The caller makes the batch wait for it.
    """
    if not named_leaves:
        raise ValueError(_messages.nothing())
    for name, leaf in named_leaves:
        if leaf.shape.rank is None or leaf.shape.rank == 0:
            raise ValueError(_messages.no_batch_axis(name, leaf.shape))
    counts = [(name, _examples.count(leaf)) for name, leaf in named_leaves]
    first_name, num_examples = counts[0]
    known = [(name, c) for name, c in counts if isinstance(c, int)]
    for name, size in known[1:]:
        if size != known[0][1]:
            raise ValueError(_messages.lengths(known[0], (name, size)))
    if known:
        num_examples = known[0][1]
        if num_examples == 0:
            raise ValueError(_messages.empty(known[0][0], 0))
    checks = []
    for name, size in counts:
        if not isinstance(size, int) and size is not num_examples:
            text = _messages.lengths((first_name, "m"), (name, "n"))
            checks.append(tf.debugging.assert_equal(size, num_examples, message=text))
    if not isinstance(num_examples, int):
        text = _messages.empty(first_name, 0)
        checks.append(tf.debugging.assert_positive(num_examples, message=text))
    return num_examples, [c for c in checks if c is not None]


def model(model: Any, group_size: int) -> None:
    """Raises ValueError where a model was built for a batch of another size."""
    problems = []
    for tensor in getattr(model, "inputs", None) or []:
        size = tensor.shape[0]
        if size is not None and size != group_size:
            problems.append(f"input {tensor.name!r} with batch size {size}")
            problems += [
                f"layer {layer.name!r} (stateful) with batch size {size}"
                for layer in _keras.layers(model)
                if getattr(layer, "stateful", False) and layer is not model
            ]
    if problems:
        raise ValueError(_messages.other_batch_size(group_size, problems))


def doubts(model: Any, sample_weight: Any, group_size: int) -> list[tuple[str, str]]:
    """Warnings, as (topic, text), of what means something else on one example."""
    if group_size > 1:
        return []
    found = []
    lonely = [layer.name for layer in _keras.layers(model) if _sees_one_value(layer)]
    if lonely:
        text = (
            f"SGDPlus feeds the model one example at a time, so {_names(lonely)} "
            "(BatchNormalization without spatial axes) would normalise each example by "
            "itself and output a constant. Replace it with LayerNormalization or "
            "GroupNormalization, or freeze it with `layer.trainable = False`."
        )
        found.append(("batch normalization", text))
    weightless = [
        loss.name
        for loss in _keras.compiled_losses(model)
        if getattr(loss, "reduction", None) == "mean_with_sample_weight"
    ]
    if weightless and sample_weight is not None:
        text = (
            'reduction="mean_with_sample_weight" divides the loss of a single example '
            "by its own weight, so sample_weight has no effect on "
            f'{_names(weightless)}. Use reduction="sum_over_batch_size" (the default).'
        )
        found.append(("reduction", text))
    return found


def _sees_one_value(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.BatchNormalization) or not layer.trainable:
        return False
    return getattr(layer.input_spec, "ndim", None) == 2


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
