"""Keras's backend functions, by Keras's names and arguments, in their lowered forms.

Each returns None where the native form is to be used: for what the lowered form does
not cover, and where it was not measured to win.

Puts the lowered forms into Keras's backend, and takes them out again.

Each wrapper calls Keras's own function unless a loop is being traced in the same
thread. Where Keras does not have a function, or has it with other parameters or
defaults, its own stays.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sgd_plus._forms import convolution, layout, reductions, tracing
from keras_sgd_plus._private import keras_optimizer, names
from keras_sgd_plus._private.types import Tensor


def _by(name: str) -> Callable[..., Tensor]:
    # `conv` and `depthwise_conv` of Keras have the same arguments; `name` is that of
    # the form that stands in for one of them.
    def conv(
        inputs: Tensor,
        kernel: Tensor,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
    ) -> Tensor:
        inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        last = (data_format or keras.config.image_data_format()) == "channels_last"
        form = getattr(convolution, name)
        return form(inputs, kernel, strides, padding, last, dilation_rate)

    return conv


_conv = _by("conv")
_depthwise_conv = _by("depthwise_conv")


def _separable_conv(
    inputs: Tensor,
    depthwise_kernel: Tensor,
    pointwise_kernel: Tensor,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Tensor:
    outputs = _depthwise_conv(
        inputs, depthwise_kernel, strides, padding, data_format, dilation_rate
    )
    if outputs is None:
        return None
    return _conv(outputs, pointwise_kernel, data_format=data_format)


def _max_pool(
    inputs: Tensor,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    last = (data_format or keras.config.image_data_format()) == "channels_last"
    inputs = tf.convert_to_tensor(inputs)
    return convolution.max_pool(inputs, pool_size, strides, padding, last)


def _batch_normalization(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    axis: int,
    offset: Tensor = None,
    scale: Tensor = None,
    epsilon: float = 1e-3,
) -> Tensor:
    if axis not in (-1, len(x.shape) - 1):
        return None
    return reductions.batch_normalization(x, mean, variance, offset, scale, epsilon)


def _moments(
    x: Tensor, axes: Any, keepdims: bool = False, synchronized: bool = False
) -> Tensor:
    if synchronized or x.dtype in (tf.float16, tf.bfloat16):
        return None
    axes = [axes] if isinstance(axes, int) else axes
    return reductions.moments(tf.convert_to_tensor(x), axes, keepdims)


def _sparse_cross_entropy(
    target: Tensor, output: Tensor, from_logits: bool = False, axis: int = -1
) -> Tensor:
    target, logits = tf.convert_to_tensor(target), tf.convert_to_tensor(output)
    if target.shape.rank == logits.shape.rank and target.shape[-1] == 1:
        target = tf.squeeze(target, -1)
    is_static = logits.shape.is_fully_defined() and target.shape == logits.shape[:-1]
    is_plain = from_logits and axis == -1 and logits.op.type != "Softmax"
    if not (is_plain and is_static):
        return None
    if logits.shape.num_elements() < reductions.MIN_ENTRIES:
        return None
    labels = tf.reshape(tf.cast(target, tf.int64), (-1,))
    rows = tf.reshape(logits, (-1, logits.shape[-1]))
    return tf.reshape(reductions.sparse_cross_entropy(labels, rows), target.shape)


def _add(x1: Tensor, x2: Tensor) -> Tensor:
    x2 = tf.convert_to_tensor(x2) if isinstance(x2, keras.Variable) else x2
    if not (isinstance(x1, tf.Tensor) and isinstance(x2, tf.Tensor)):
        return None
    return reductions.add_bias(x1, x2)


def _matmul(x1: Tensor, x2: Tensor) -> Tensor:
    matrix = x2
    if isinstance(x2, keras.Variable):
        found = tracing.ask_product(x1, x2)
        if found is not None:
            return found
        matrix = tf.convert_to_tensor(x2)
    return layout.matmul(x1, matrix) if isinstance(x1, tf.Tensor) else None


def _dropout(
    inputs: Tensor, rate: Any, noise_shape: Any = None, seed: Any = None
) -> Tensor:
    if not isinstance(rate, float) or not 0 < rate < 1:
        return None
    inputs = tf.convert_to_tensor(inputs)
    shape = tf.shape(inputs)
    if noise_shape is not None:
        sizes = zip(tf.unstack(shape), noise_shape, strict=True)
        shape = tf.stack([actual if n is None else n for actual, n in sizes])
    elif inputs.shape.is_fully_defined():
        shape = inputs.shape
    seed = keras_optimizer.draw_seed(seed)
    scaled = inputs * tf.constant(1.0 / (1.0 - rate), inputs.dtype)
    kept = reductions.keep_mask(seed, rate, shape, inputs.dtype)
    return tf.where(kept, scaled, tf.zeros_like(scaled))


LOWERINGS = {
    "conv": _conv,
    "depthwise_conv": _depthwise_conv,
    "separable_conv": _separable_conv,
    "max_pool": _max_pool,
    "batch_normalization": _batch_normalization,
    "moments": _moments,
    "sparse_categorical_crossentropy": _sparse_cross_entropy,
    "add": _add,
    "matmul": _matmul,
    "dropout": _dropout,
    "take": tracing.take,
}


_MARK = "_keras_sgd_plus_native"
_warned: set[str] = set()  # functions that this process was warned of


def install() -> None:
    """Wraps functions of Keras's backend, each once; warns once of those it cannot."""
    missing = []
    for name, modules in keras_optimizer.lowered_functions().items():
        lowering = LOWERINGS[name]
        fitting = [m for m in modules if _same_signature(getattr(m, name), lowering)]
        for module in fitting:
            native: Any = getattr(module, name)
            if not hasattr(native, _MARK):
                setattr(module, name, _lowered(native, lowering))
        if not fitting:
            missing.append(name)
    if missing and tracing.is_on() and not _warned.issuperset(missing):
        _warned.update(missing)
        warnings.warn(_slower(missing))


def uninstall() -> None:
    """Gives Keras its own functions back."""
    for name, modules in keras_optimizer.lowered_functions().items():
        for module in modules:
            current = getattr(module, name)
            setattr(module, name, getattr(current, _MARK, current))


def is_installed(name: str) -> bool:
    """Whether Keras's function of that name is wrapped."""
    modules = keras_optimizer.lowered_functions()[name]
    return any(hasattr(getattr(module, name), _MARK) for module in modules)


def _same_signature(native: Any, lowering: Any) -> bool:
    # Names, kinds and defaults: the lowered form fills in its own defaults.
    signatures = [
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (native, lowering)
    ]
    return signatures[0] == signatures[1]


def _lowered(native: Any, lowering: Any) -> Any:
    @functools.wraps(native)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        found = None
        if tracing.is_active():
            found = lowering(*args, **kwargs)
        return native(*args, **kwargs) if found is None else found

    setattr(dispatch, _MARK, native)
    return dispatch


def _slower(missing: list[str]) -> str:
    return (
        "SGDPlus wraps functions of Keras's TensorFlow backend, for forms that XLA "
        f"compiles better. Received: Keras {keras.__version__}, in which "
        f"{', '.join(missing)} cannot be found or have other parameters. Training is "
        "right, but slower in models that use them. Install versions that have them: "
        f"{names.INSTALL}."
    )
