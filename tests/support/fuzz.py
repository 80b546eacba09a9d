"""Random trainings: a `Case` describes one, `train` runs it with both optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.support.fuzz_models import (
    CONSTRAINTS,
    HEADS,
    MODELS,
    REGULARIZERS,
    Size,
    build,
    examples,
)
from tests.support.structures import assert_alike
from tests.support.twins import Pair, train_pair
from tests.support.versions import KERAS

schedules = keras.optimizers.schedules
RATES: dict[str, Callable[[], Any]] = {
    "constant": lambda: 0.01,
    "small": lambda: 0.004,
    "inverse_time": lambda: schedules.InverseTimeDecay(0.01, 1, 0.3),
    "exponential": lambda: schedules.ExponentialDecay(0.01, 5, 0.8, staircase=True),
    "warm_up": lambda: schedules.CosineDecay(
        1e-3, 9, 0.1, warmup_target=0.01, warmup_steps=3
    ),
    "piecewise": lambda: schedules.PiecewiseConstantDecay([2, 7], [0.01, 0.005, 1e-3]),
    "callable": lambda: lambda: 0.01,
}
# Of each kind of y, metrics that go with it
METRICS: dict[str, tuple[str, ...]] = {
    "real": ("mae", "root_mean_squared_error"),
    "positive": ("mse",),
    "sign": ("mae",),
    "bit": ("binary_accuracy", "mse"),
    "id": ("sparse_categorical_crossentropy", "sparse_categorical_accuracy"),
    "one_hot": ("categorical_accuracy", "kl_divergence"),
}


@dataclass(frozen=True)
class Case:
    """A model, its data and its training, in plain values: `repr` reproduces it."""

    model: str = "dense"
    container: str = "tensor"  # of the outputs: a third have one in a list, say
    head: str = "mse"
    units: int = 4
    depth: int = 1
    activation: str | None = "tanh"
    regularizer: str | None = None
    constraint: str | None = None
    frozen: bool = False  # the first layer that has weights
    dtype: str = "float32"  # dtype policy; float64 sets floatx too
    x_dtype: str = "float32"  # where the model takes floats
    seed: int = 0
    num_examples: int = 8
    batch_size: int = 3
    epochs: int = 1
    group: int = 1  # examples_per_update
    dataset: bool = False  # SGDPlus gets a tf.data pipeline
    weights: str | None = None  # sample_weight: "some", or "zeros" among them
    metrics: bool = False
    jit_compile: bool | str = "auto"  # of SGDPlus
    model_jit: bool = False  # of compile(), with SGDPlus
    keras_jit: bool = True  # of compile(), with SGD
    rate: str = "constant"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None
    clip: tuple[str, float] | None = None
    ema: tuple[float, int | None] | None = None  # ema_momentum, overwrite frequency
    accumulation: int | None = None
    loss_scale: float | None = None

    @property
    def num_updates(self) -> int:
        """Updates, or gradients where they are accumulated."""
        return -(-self.num_examples // self.group) * self.epochs

    def sgd(self) -> dict[str, Any]:
        """Arguments of both optimizers; schedules are made anew at each call."""
        more: dict[str, Any] = {} if self.clip is None else dict([self.clip])
        if self.ema is not None:
            momentum, overwrite = self.ema
            more |= {"use_ema": True, "ema_momentum": momentum}
            more["ema_overwrite_frequency"] = overwrite
        return {
            "learning_rate": RATES[self.rate](),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            "loss_scale_factor": self.loss_scale,
            "gradient_accumulation_steps": self.accumulation,
            **more,
        }

    def make_model(self) -> keras.Model:
        """A fresh model, not compiled."""
        size = Size(
            self.units, self.depth, self.activation, self.regularizer, self.constraint
        )
        model = build(self.model, size, HEADS[self.head], self.container)
        if self.frozen:
            layers = [layer for layer in model.layers if layer.count_params()]
            layers[0].trainable = False
        return model

    def compiling(self) -> dict[str, Any]:
        """Arguments of both `compile` calls, made anew."""
        head = HEADS[self.head]
        loss, metrics = head.loss(), list(METRICS[head.y]) if self.metrics else []
        if self.model == "two_outputs":
            arguments: dict[str, Any] = {
                "loss": [loss, "mse"],
                "loss_weights": [1.0, 0.5],
                "metrics": [metrics, ["mae"]] if metrics else None,
            }
        else:
            arguments = {"loss": loss, "metrics": metrics, "weighted_metrics": metrics}
        return {**arguments, "jit_compile": self.keras_jit}

    def sample_weight(self) -> np.ndarray | None:
        """A weight per example, or None."""
        if self.weights is None:
            return None
        weights = np.random.default_rng(self.seed).uniform(0.5, 2, self.num_examples)
        if self.weights == "zeros":
            weights[1::3] = 0
        return weights.astype("float32")


@st.composite
def cases(draw: Any) -> Case:
    """Cases in which at least one update is made and the weights stay finite."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    def rarely(*values: Any) -> Any:
        return one_of(*[None] * (2 * len(values) or 1), *values)

    model = one_of(*MODELS)
    # Half precision is for dense models alone. In others XLA's kernels round at other
    # places than TensorFlow's, and than each other.
    half = model in ("dense", "residual", "two_inputs", "subclassed")
    dtype = one_of("float32", "float32", "float64", *["mixed_bfloat16"] * half)
    # In the cosine, gradients along a prediction cancel, and only rounding is left.
    heads = [h for h in HEADS if h != "cosine" or dtype == "float64"]
    # Keras cannot add a bfloat16 cost of activities to a float32 loss. It cannot divide
    # sparse gradients by the scale of a loss.
    costs = [r for r in REGULARIZERS if r != "activity" or dtype[:5] == "float"]
    # Keras 3.13 multiplies float64 weights by regularizers' float32 numbers, and fails.
    if KERAS <= (3, 13) and dtype == "float64":
        costs = []
    scales = (2.0, 128.0) if model not in ("embedding", "masked", "attention") else ()
    # Both sides use XLA's kernels. Rounding decides between two values under a maximum,
    # or a gradient and its limit, that are equal up to rounding. In float64 Keras uses
    # TensorFlow's kernels; then some float32 schedules are left out.
    jit_compile = one_of("auto", "auto", False) if dtype[:5] == "float" else "auto"
    inexact = ("exponential", "warm_up") if dtype == "float64" else ()
    rates = [rate for rate in RATES if rate not in inexact]
    group = one_of(1, 1, 1, 2, 3)
    accumulation = rarely(2, 3)
    num_examples = draw(st.integers(group * (accumulation or 1), 24))
    if model == "two_outputs":
        # If Keras does not know the sizes of batches while tracing, it averages the
        # loss of an output as if they had one size.
        num_examples = -(-num_examples // group) * group
    return Case(
        model=model,
        container=one_of(*["tensor"] * 4, "list", "tuple"),
        head=one_of(*heads),
        units=draw(st.integers(1, 6)),
        depth=one_of(1, 2, 3),
        activation=one_of(None, "tanh", "relu", "gelu", "softplus", "sigmoid"),
        regularizer=rarely(*costs),
        constraint=rarely(*CONSTRAINTS),
        frozen=model != "subclassed" and one_of(False, False, False, True),
        dtype=dtype,
        x_dtype=one_of("float32", "float32", "float64", "float16", "int32", "uint8"),
        seed=draw(st.integers(0, 2**16)),
        num_examples=num_examples,
        batch_size=group * draw(st.integers(1, 8)),
        epochs=one_of(1, 1, 2, 3),
        group=group,
        dataset=one_of(False, False, True),
        weights=rarely("some", "zeros"),
        metrics=draw(st.booleans()),
        jit_compile=jit_compile,
        model_jit=jit_compile == "auto" and one_of(False, False, False, True),
        keras_jit=jit_compile == "auto" and dtype != "float64",
        rate=one_of(*rates),
        momentum=one_of(0.0, 0.5, 0.9),
        nesterov=draw(st.booleans()),
        weight_decay=rarely(0.01, 0.1),
        clip=rarely(("clipnorm", 0.4), ("clipvalue", 0.2), ("global_clipnorm", 0.8)),
        ema=rarely((0.9, None), (0.5, 2), (0.8, 3)),
        accumulation=accumulation,
        loss_scale=rarely(*scales),
    )


@contextlib.contextmanager
def _policy(dtype: str) -> Iterator[None]:
    keras.config.set_floatx("float64" if dtype == "float64" else "float32")
    keras.config.set_dtype_policy(dtype)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def train(case: Case) -> Pair:
    """Both models after the training of a case."""
    with _policy(case.dtype):
        x, y, weight = _data(case)
        ours: dict[str, Any] = {"batch_size": case.batch_size}
        if case.dataset:
            parts = [p for p in (x, y, weight) if p is not None]
            tensors = tuple(tuple(p) if isinstance(p, list) else p for p in parts)
            data = tf.data.Dataset.from_tensor_slices(tensors).batch(case.batch_size)
            ours = {"x": data, "y": None, "sample_weight": None, "batch_size": None}
        return train_pair(
            case.make_model,
            x,
            y,
            sgd=case.sgd,
            plus={
                "order": "given",
                "examples_per_update": case.group,
                "jit_compile": case.jit_compile,
            },
            compile=case.compiling,
            our_compile={"jit_compile": case.model_jit},
            fit={"epochs": case.epochs, "sample_weight": weight},
            our_fit=ours,
            their_fit={"batch_size": case.group},
        )


def _data(case: Case) -> tuple[Any, Any, Any]:
    x_dtype = "float64" if case.dtype == "float64" else case.x_dtype
    head, seed = HEADS[case.head], case.seed
    x, y = examples(case.model, head, case.num_examples, x_dtype, seed)
    return x, y, case.sample_weight()


def assert_evaluate_alike(case: Case, pair: Pair) -> None:
    """`evaluate` and `predict` say the same of both models.

    Weights differ by rounding, and a loss may magnify that: a hundredth of one is
    allowed, where the loss of other examples would differ by tenths.
    """
    with _policy(case.dtype):
        x, y, weight = _data(case)
        seen = [
            [
                model.evaluate(x, y, 5, 0, weight, return_dict=True),
                model.predict(x, 4, 0),
            ]
            for model in (pair.ours, pair.theirs)
        ]
    assert_alike(*seen, tolerance=0.03 if "bfloat16" in case.dtype else 0.003)
