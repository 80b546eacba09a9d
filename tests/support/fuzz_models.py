"""`fuzz.py` draws from these models, heads with losses, and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.support.structures import contained

NUM_CLASSES, NUM_IDS = 3, 9


@dataclass(frozen=True)
class Size:
    """The size of a model, and the options of its kernels."""

    units: int = 4
    depth: int = 1  # 1 to 3; each model uses it in its own way
    activation: str | None = "tanh"
    regularizer: str | None = None  # of REGULARIZERS
    constraint: str | None = None  # of CONSTRAINTS

    def kernel(self) -> dict[str, Any]:
        """Regularizers and constraints, as arguments of a layer."""
        found: dict[str, Any] = {}
        if self.regularizer:
            found |= REGULARIZERS[self.regularizer]()
        if self.constraint:
            found["kernel_constraint"] = CONSTRAINTS[self.constraint]()
        return found

    def activate(self, x: Any) -> Any:
        """The activation as a layer of its own."""
        return layers.Activation(self.activation or "linear")(x)


REGULARIZERS: dict[str, Callable[[], dict[str, Any]]] = {
    "l1": lambda: {"kernel_regularizer": keras.regularizers.L1(0.01)},
    "l2": lambda: {"kernel_regularizer": keras.regularizers.L2(0.01)},
    "activity": lambda: {"activity_regularizer": keras.regularizers.L2(0.01)},
}
CONSTRAINTS: dict[str, Callable[[], Any]] = {
    "max_norm": lambda: keras.constraints.MaxNorm(0.8),
    "non_neg": keras.constraints.NonNeg,
    "unit_norm": keras.constraints.UnitNorm,
}


# Bodies


def _dense(size: Size, x: Any) -> Any:
    for _ in range(size.depth):
        x = layers.Dense(size.units, size.activation, **size.kernel())(x)
    return x


def _normed(size: Size, x: Any) -> Any:
    x = layers.Dense(2 * size.units, **size.kernel())(x)
    x = size.activate(layers.LayerNormalization()(x))
    return layers.GroupNormalization(2)(x) if size.depth > 1 else x


def _residual(size: Size, x: Any) -> Any:
    x = layers.Dense(size.units)(x)
    for _ in range(size.depth):
        inner = layers.Dense(size.units, size.activation, **size.kernel())(x)
        x = layers.Add()([x, layers.Multiply()([inner, x])])
    return x


def _shared(size: Size, x: Any) -> Any:
    x = layers.Dense(size.units)(x)
    layer = layers.Dense(size.units, size.activation, **size.kernel())
    for _ in range(1 + size.depth):
        x = layer(x)
    return x


def _conv_1d(size: Size, x: Any) -> Any:
    padding = "causal" if size.depth == 2 else "same"
    x = layers.Conv1D(size.units, 3, 1, padding, **size.kernel())(x)
    return layers.Flatten()(layers.AveragePooling1D(2)(size.activate(x)))


def _conv_2d(size: Size, x: Any) -> Any:
    strides = 2 if size.depth == 2 else 1
    x = layers.Conv2D(size.units, 3, strides, "same", **size.kernel())(x)
    x = layers.MaxPooling2D(2, padding="same")(size.activate(x))
    if size.depth == 3:
        x = layers.Conv2D(size.units, (1, 2), activation=size.activation)(x)
    return layers.Flatten()(x)


def _conv_norm(size: Size, x: Any) -> Any:
    x = layers.Conv2D(size.units, 3, use_bias=False, **size.kernel())(x)
    x = size.activate(layers.BatchNormalization(momentum=0.9)(x))
    return layers.GlobalAveragePooling2D()(x)


def _separable(size: Size, x: Any) -> Any:
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.SeparableConv2D(size.units, 3, activation=size.activation)(x)
    return layers.GlobalMaxPooling2D()(x)


def _lstm(size: Size, x: Any) -> Any:
    return layers.LSTM(size.units, **size.kernel())(x)


def _gru(size: Size, x: Any) -> Any:
    if size.depth > 1:
        return layers.Bidirectional(layers.GRU(size.units))(x)
    return layers.GRU(size.units, **size.kernel())(x)


def _embedding(size: Size, x: Any) -> Any:
    x = layers.Embedding(NUM_IDS, size.units)(x)
    flat = layers.Flatten() if size.depth > 1 else layers.GlobalAveragePooling1D()
    return flat(x)


def _masked(size: Size, x: Any) -> Any:
    x = layers.Embedding(NUM_IDS, size.units, mask_zero=True)(x)
    return layers.SimpleRNN(size.units, **size.kernel())(x)


def _attention(size: Size, x: Any) -> Any:
    h = layers.Embedding(NUM_IDS, 2 * size.units)(x)
    a = layers.MultiHeadAttention(2, size.units)(h, h, use_causal_mask=size.depth > 1)
    h = layers.LayerNormalization()(layers.Add()([h, a]))
    return layers.GlobalAveragePooling1D()(h)


FLAT, SEQUENCE, IMAGE, IDS = (5,), (6, 3), (6, 6, 2), (6,)
# name -> shape of an example, body. Bodies on IDS take integers.
MODELS: dict[str, tuple[tuple[int, ...], Callable[[Size, Any], Any]]] = {
    "dense": (FLAT, _dense),
    "normed": (FLAT, _normed),
    "residual": (FLAT, _residual),
    "shared": (FLAT, _shared),
    "two_inputs": (FLAT, _dense),
    "two_outputs": (FLAT, _dense),
    "subclassed": (FLAT, _dense),
    "conv_1d": (SEQUENCE, _conv_1d),
    "conv_2d": (IMAGE, _conv_2d),
    "conv_norm": (IMAGE, _conv_norm),
    "separable": (IMAGE, _separable),
    "lstm": (SEQUENCE, _lstm),
    "gru": (SEQUENCE, _gru),
    "embedding": (IDS, _embedding),
    "masked": (IDS, _masked),
    "attention": (IDS, _attention),
}


# Heads: units, activation, loss, and what y is


@dataclass(frozen=True)
class Head:
    """The last layer, a loss that goes with it, and the kind of y."""

    units: int
    activation: str | None
    loss: Callable[[], Any]
    y: str  # real, positive, sign, bit, id or one_hot


HEADS: dict[str, Head] = {
    "mse": Head(2, None, lambda: "mse", "real"),
    "mae": Head(2, None, keras.losses.MeanAbsoluteError, "real"),
    "huber": Head(1, None, lambda: keras.losses.Huber(0.5), "real"),
    "log_cosh": Head(3, None, lambda: "log_cosh", "real"),
    "cosine": Head(3, None, keras.losses.CosineSimilarity, "real"),
    "msle": Head(2, "softplus", lambda: "mean_squared_logarithmic_error", "positive"),
    "poisson": Head(1, "softplus", lambda: "poisson", "positive"),
    "sum": Head(2, None, lambda: keras.losses.MeanSquaredError("sum"), "real"),
    "function": Head(2, None, lambda: _root, "real"),
    "squared_hinge": Head(1, None, lambda: "squared_hinge", "sign"),
    "binary": Head(1, "sigmoid", lambda: "binary_crossentropy", "bit"),
    "binary_logits": Head(
        2, None, lambda: keras.losses.BinaryCrossentropy(from_logits=True), "bit"
    ),
    "focal": Head(1, "sigmoid", lambda: "binary_focal_crossentropy", "bit"),
    "classes": Head(
        NUM_CLASSES, "softmax", lambda: "sparse_categorical_crossentropy", "id"
    ),
    "class_logits": Head(
        NUM_CLASSES,
        None,
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "id",
    ),
    "one_hot": Head(
        NUM_CLASSES,
        "softmax",
        lambda: keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        "one_hot",
    ),
    "kl": Head(NUM_CLASSES, "softmax", lambda: "kl_divergence", "one_hot"),
}


def _root(y: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.sqrt(1 + (y - y_pred) ** 2), axis=-1)


class Subclassed(keras.Model):
    """Layers made in `__init__`, and built by the first batch."""

    def __init__(self, size: Size, head: layers.Layer) -> None:
        super().__init__()
        self.hidden = layers.Dense(size.units, size.activation, **size.kernel())
        self.head = head

    def call(self, x: Any, training: bool = False) -> Any:
        del training
        return self.head(self.hidden(x))


def build(name: str, size: Size, head: Head, container: str = "tensor") -> keras.Model:
    """A fresh model.

    Args:
        container: of a functional model's one output, or of its two.
    """
    # Under mixed precision the last layer stays in float32, as Keras's guide says.
    dtype = keras.config.floatx()
    last = layers.Dense(head.units, head.activation, dtype=dtype, name="first")
    if name == "subclassed":
        return Subclassed(size, last)
    shape, body = MODELS[name]
    x = keras.Input(shape, dtype="int32" if shape is IDS else None)
    if name == "two_inputs":
        other = keras.Input(shape)
        both = layers.Concatenate()([body(size, x), layers.Dense(2)(other)])
        return keras.Model([x, other], contained(container, [last(both)], ["first"]))
    h = body(size, x)
    if name == "two_outputs":
        second = layers.Dense(1, dtype=dtype, name="second")
        outputs = [last(h), second(h)]
        return keras.Model(x, tuple(outputs) if container == "tuple" else outputs)
    return keras.Model(x, contained(container, [last(h)], ["first"]))


def examples(
    name: str, head: Head, num_examples: int, dtype: str, seed: int
) -> tuple[Any, Any]:
    """x and y for a model: one array each, or a list of two."""
    rng = np.random.default_rng(seed)
    shape = (num_examples, *MODELS[name][0])
    if MODELS[name][0] is IDS:
        x: Any = rng.integers(0, NUM_IDS, shape).astype("int32")
        x[:, 0] = rng.integers(1, NUM_IDS, num_examples)  # not all of it is masked
    elif dtype in ("uint8", "int32"):
        x = rng.integers(0, 4, shape).astype(dtype)
    else:
        x = rng.normal(size=shape).astype(dtype)
    y = _targets(rng, head, num_examples)
    if name == "two_inputs":
        x = [x, rng.normal(size=shape).astype("float32")]
    if name == "two_outputs":
        y = [y, rng.normal(size=(num_examples, 1)).astype(y_dtype())]
    return x, y


def y_dtype() -> str:
    """Targets are as exact as the model."""
    return keras.config.floatx()


def _targets(rng: np.random.Generator, head: Head, num_examples: int) -> np.ndarray:
    shape = (num_examples, head.units)
    if head.y == "id":
        return rng.integers(0, NUM_CLASSES, num_examples).astype("int32")
    if head.y == "one_hot":
        return np.eye(NUM_CLASSES)[rng.integers(0, NUM_CLASSES, num_examples)].astype(
            y_dtype()
        )
    if head.y in ("bit", "sign"):
        bits = rng.integers(0, 2, shape)
        return (bits if head.y == "bit" else 2 * bits - 1).astype(y_dtype())
    real = rng.normal(size=shape)
    return (np.abs(real) if head.y == "positive" else real).astype(y_dtype())
