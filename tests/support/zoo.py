"""Small models of every kind, with seeded data: `ZOO[id]`.

The tests train each with SGDPlus and with `keras.optimizers.SGD` at `batch_size=1`;
`python -m benchmarks equality` prints how far the two are apart. Ids are permanent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

Builder = Callable[[], keras.Model]
NUM_CLASSES = 4


@dataclass(frozen=True)
class Case:
    """A model, its data and how it is compiled."""

    id: str
    build: Builder
    shape: tuple[int, ...]  # of one example
    kind: str = "float"  # float, ids (vocabulary 12), bytes (0 to 255), half
    loss: Any = "sparse_categorical_crossentropy"
    dtype: str = "float32"  # dtype policy
    learning_rate: float = 0.005

    def model(self) -> keras.Model:
        """A fresh model, the same at every call."""
        keras.utils.set_random_seed(7)
        with self.policy():
            return self.build()

    def policy(self) -> _Policy:
        """A context in which to build, compile and train: dtype policy and floatx."""
        return _Policy(self.dtype)

    def metrics(self) -> list[Any]:
        """Metrics to compile with."""
        return ["accuracy"]

    def data(self, num_examples: int, seed: int = 0) -> tuple[Any, Any]:
        """`x` of shape `(num_examples, *shape)` and integer labels that x explains."""
        rng = np.random.default_rng(seed)
        shape = (num_examples, *self.shape)
        if self.kind == "ids":
            x: Any = rng.integers(1, 12, shape).astype("int32")
            x[:, -2:] = 0  # padding, for models that mask
        elif self.kind == "bytes":
            x = rng.integers(0, 256, shape).astype("uint8")
        else:
            x = rng.normal(size=shape).astype("float32")
        flat = x.reshape(num_examples, -1).astype("float64")
        flat = (flat - flat.mean()) / flat.std()
        y = (flat @ rng.normal(size=(flat.shape[1], NUM_CLASSES))).argmax(1)
        return x.astype("float16") if self.kind == "half" else x, y.astype("int32")


class _Policy:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.floatx = keras.config.floatx()
        self.before = keras.config.dtype_policy()
        if self.name == "float64":
            keras.config.set_floatx("float64")
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *error: Any) -> None:
        keras.config.set_floatx(self.floatx)
        keras.config.set_dtype_policy(self.before)


def _softmax() -> layers.Layer:
    # Under mixed precision a softmax stays in float32, as Keras's guide says.
    dtype = keras.config.floatx()
    return layers.Dense(NUM_CLASSES, activation="softmax", dtype=dtype)


def _sequential(shape: tuple[int, ...], *body: Callable[[], Any], **kw: Any) -> Builder:
    def build() -> keras.Model:
        first = keras.Input(shape, **kw)
        return keras.Sequential([first, *(make() for make in body), _softmax()])

    return build


def _lambda(cls: Any, *args: Any, **kw: Any) -> Callable[[], Any]:
    return lambda: cls(*args, **kw)


L = _lambda
_relu = {"activation": "relu"}


def _mlp() -> keras.Model:
    return _sequential((12,), L(layers.Dense, 16, **_relu))()


def _regularized() -> keras.Model:
    regularizer = keras.regularizers.L1L2(1e-3, 1e-2)
    dense = L(
        layers.Dense,
        16,
        kernel_regularizer=regularizer,
        activity_regularizer=keras.regularizers.L2(1e-2),
        kernel_constraint=keras.constraints.MaxNorm(1.0),
        **_relu,
    )
    return _sequential((12,), dense)()


def _functional() -> keras.Model:
    x = keras.Input((12,))
    a = layers.Dense(8, activation="relu")(x)
    b = layers.Dense(8, activation="tanh")(x)
    merged = layers.Concatenate()([a, layers.Multiply()([a, b])])
    return keras.Model(x, _softmax()(merged))


class Subclassed(keras.Model):
    """Two dense layers, made in `__init__`, built at the first call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = layers.Dense(16, activation="relu")
        self.head = _softmax()

    def call(self, x: Any, training: bool = False) -> Any:
        del training
        return self.head(self.hidden(x))


def _trainer_and_layer() -> keras.Model:
    # A model that is no keras.Model: Keras documents Trainer + Layer for this.
    trainer = next(c for c in keras.Model.__mro__ if "train_step" in vars(c))

    class Bare(trainer, layers.Layer):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            layers.Layer.__init__(self)
            trainer.__init__(self)
            self.head = _softmax()

        def call(self, x: Any) -> Any:
            return self.head(x)

    return Bare()  # type: ignore[return-value]


def _nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((12,)), layers.Dense(8, activation="relu")])
    x = keras.Input((12,))
    return keras.Model(x, _softmax()(layers.Dense(8, activation="tanh")(inner(x))))


def _shared() -> keras.Model:
    x = keras.Input((12,))
    shared = layers.Dense(12, activation="tanh")
    return keras.Model(x, _softmax()(shared(shared(x))))


def _frozen() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((12,)), layers.Dense(16, activation="relu"), _softmax()]
    )
    model.layers[0].trainable = False
    return model


def _lora() -> keras.Model:
    model = _mlp()
    model.layers[0].enable_lora(2)
    return model


def _transformer() -> keras.Model:
    x = keras.Input((10,), dtype="int32")
    h = layers.Embedding(12, 16)(x)
    for _ in range(2):
        a = layers.LayerNormalization()(h)
        a = layers.MultiHeadAttention(2, 8)(a, a, use_causal_mask=True)
        h = layers.Add()([h, a])
        m = layers.LayerNormalization()(h)
        m = layers.Dense(16)(layers.Dense(32, activation="gelu")(m))
        h = layers.Add()([h, m])
    return keras.Model(x, _softmax()(layers.GlobalAveragePooling1D()(h)))


def _zoo() -> list[Case]:
    image, sequence, flat = (8, 8, 3), (10, 5), L(layers.Flatten)
    conv = L(layers.Conv2D, 6, 3, **_relu)
    embed = L(layers.Embedding, 12, 8, mask_zero=True)
    ids: dict[str, Any] = {"shape": (10,), "kind": "ids"}
    tokens = {"dtype": "int32"}

    def seq(shape: tuple[int, ...], *body: Any, **kw: Any) -> Builder:
        return _sequential(shape, *body, **kw)

    conv_bn = [conv, L(layers.BatchNormalization), L(layers.Dropout, 0.25), flat]
    conv_1d = [L(layers.Conv1D, 6, 3, **_relu), L(layers.MaxPooling1D), flat]
    conv_3d = [L(layers.Conv3D, 4, 3, **_relu), L(layers.AveragePooling3D, 2), flat]
    depthwise = [L(layers.DepthwiseConv2D, 3), L(layers.SeparableConv2D, 6, 3), flat]
    pooled = [conv, L(layers.MaxPooling2D), L(layers.GlobalAveragePooling2D)]
    normed = [L(layers.Dense, 16), L(layers.LayerNormalization)]
    noisy = [L(layers.GaussianNoise, 0.1), L(layers.Dense, 16), L(layers.Dropout, 0.5)]
    scaled = [L(layers.Rescaling, 1 / 255), flat, L(layers.Dense, 16, **_relu)]
    both_ways = [L(layers.Bidirectional, layers.LSTM(6))]
    return [
        Case("mlp", _mlp, (12,)),
        Case("mlp_regularized", _regularized, (12,)),
        Case("functional", _functional, (12,)),
        Case("subclassed", Subclassed, (12,)),
        Case("trainer_and_layer", _trainer_and_layer, (12,)),
        Case("nested", _nested, (12,)),
        Case("shared_layer", _shared, (12,)),
        Case("frozen_layer", _frozen, (12,)),
        Case("lora", _lora, (12,)),
        Case("layer_norm", seq((12,), *normed), (12,)),
        Case("dropout", seq((12,), *noisy), (12,)),
        Case("conv1d", seq(sequence, *conv_1d), sequence),
        Case("conv2d_pool", seq(image, *pooled), image),
        Case("conv3d", seq((5, 5, 5, 2), *conv_3d), (5, 5, 5, 2)),
        Case("depthwise", seq(image, *depthwise), image),
        Case("conv_bn_dropout", seq(image, *conv_bn), image),
        Case("lstm", seq(sequence, L(layers.LSTM, 8)), sequence),
        Case("gru", seq(sequence, L(layers.GRU, 8)), sequence),
        Case("bidirectional", seq(sequence, *both_ways), sequence),
        Case("embedding_mask", seq((10,), embed, L(layers.GRU, 6), **tokens), **ids),
        Case(
            "embedding_bag",
            seq((10,), L(layers.Embedding, 12, 8), flat, **tokens),
            **ids,
        ),
        Case("transformer", _transformer, **ids),
        Case("uint8_image", seq(image, *scaled, dtype="uint8"), image, "bytes"),
        Case("float16_input", _mlp, (12,), "half"),
        Case("mlp_float64", _mlp, (12,), dtype="float64"),
        Case("mlp_bfloat16", _mlp, (12,), dtype="mixed_bfloat16"),
        Case("mlp_float16", _mlp, (12,), dtype="mixed_float16"),
    ]


ZOO = {case.id: case for case in _zoo()}
