"""XLA compiles the loop if it can; otherwise the same loop runs without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_sgd_plus import SGDPlus
from tests.support.internals import step, xla
from tests.support.messages import (
    caught_by,
    compiled,
    fit,
)
from tests.support.tiers import matrix, matrix_rows
from tests.support.twins import (
    assert_same,
    dense_data,
    dense_model,
    train_pair,
)


def _model(**options: Any) -> keras.Model:
    model = dense_model()
    model.compile(SGDPlus(0.01, 0.9, **options), "mse")
    return model


def test_the_loop_is_compiled_by_default(compiled_runs: list[bool]) -> None:
    x, y = dense_data()
    _model().fit(x, y, batch_size=8, verbose=0)
    assert compiled_runs == [True]


class _WithOp(keras.layers.Layer):
    """A layer that says `supports_jit=True` and does something that XLA refuses."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def call(self, x: Any) -> Any:
        if self.op == "print":
            tf.print("", end="", output_stream=sys.stderr)
        elif self.op == "numpy_function":
            shape = x.shape
            x = tf.numpy_function(np.copy, [x], x.dtype)
            x.set_shape(shape)
        elif self.op == "string":
            text = tf.strings.as_string(tf.reduce_sum(x))
            x = x * tf.cast(tf.strings.length(text) > 0, x.dtype)
        return x


def _model_with(op: str) -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2), _WithOp(op)])


@pytest.mark.parametrize("op", ["print", *matrix("string")])
def test_what_xla_refuses_runs_without_it(
    op: str, engagements: list[str], compiled_runs: list[bool]
) -> None:
    x, y = dense_data()
    with pytest.warns(
        UserWarning, match=r"XLA cannot compile .*: unsupported"
    ) as found:
        pair = train_pair(lambda: _model_with(op), x, y, fit={"epochs": 2})
    assert sum("XLA cannot" in str(w.message) for w in found) == 1
    assert_same(pair)
    assert engagements and compiled_runs == [False]


@pytest.mark.parametrize(
    ("plus", "compile"),
    [
        ({"jit_compile": False}, {}),
        pytest.param({}, {"run_eagerly": True}, marks=pytest.mark.matrix),
    ],
    ids=["jit_compile=False", "run_eagerly"],
)
def test_without_xla_the_result_is_the_same(
    plus: dict[str, Any],
    compile: dict[str, Any],
    engagements: list[str],
    compiled_runs: list[bool],
) -> None:
    x, y = dense_data(16)
    plus = {"order": "given", **plus}
    pair = train_pair(dense_model, x, y, plus=plus, our_compile=compile)
    assert_same(pair)
    assert engagements and not any(compiled_runs)


@pytest.mark.matrix
def test_keras_may_own_the_compilation(engagements: list[str]) -> None:
    x, y = dense_data()
    pair = train_pair(dense_model, x, y, our_compile={"jit_compile": True})
    assert_same(pair)
    assert engagements


@pytest.mark.matrix
def test_reshuffled_training_agrees_with_and_without_xla() -> None:
    x, y = dense_data()
    results = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = _model(seed=5, jit_compile=jit_compile)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Printing(layers.Layer):
    """A layer with an operation that XLA refuses, though it says `supports_jit`."""

    def __init__(self, operation: Callable[[Any], Any]) -> None:
        super().__init__()
        self.operation = operation
        assert self.supports_jit

    def call(self, x: Any) -> Any:
        return self.operation(x)


def tf_print(x: Any) -> Any:
    with tf.control_dependencies([tf.print(x[0, 0], output_stream="file://%s")]):
        return tf.identity(x)


def tf_numpy_function(x: Any) -> Any:
    (seen,) = tf.numpy_function(lambda v: [np.float32(0)], [x], [tf.float32])
    return x + tf.stop_gradient(tf.reshape(seen, ()))


def tf_strings(x: Any) -> Any:
    length = tf.strings.length(tf.strings.as_string(x[0, 0]))
    return x + 0.0 * tf.cast(length, x.dtype)


def _xla_model(operation: Any, in_loss: bool) -> Any:
    keras.utils.set_random_seed(1)
    body = [layers.Dense(3), layers.Dense(2)]
    if in_loss:

        def loss(y: Any, y_pred: Any) -> Any:
            return tf.reduce_mean(tf.square(operation(y_pred) - y), -1)

        return keras.Sequential([keras.Input((5,)), *body]), loss
    body.insert(1, Printing(operation))
    return keras.Sequential([keras.Input((5,)), *body]), "mse"


@pytest.mark.parametrize("in_loss", [False, *matrix(True)], ids=["layer", "loss"])
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (tf_print, "StringFormat"),  # the first of the two that tf.print is made of
        *matrix_rows((tf_numpy_function, "PyFunc"), (tf_strings, "AsString")),
    ],
    ids=["print", "numpy_function", "strings"],
)
def test_refusal_of_xla_names_the_operation(
    operation: Any,
    name: str,
    in_loss: bool,
    engagements: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tf, "print", _printer(tf.print, tmp_path / "printed"))
    weights, texts = [], []
    for jit_compile in ("auto", False):
        layer, loss = _xla_model(operation, in_loss)
        plus = {"jit_compile": jit_compile}
        model = compiled(layer, plus=plus, loss=loss)
        match = "SGDPlus(..., jit_compile=False)"
        texts.append(caught_by(lambda: fit(model, epochs=2), match))  # noqa: B023
        assert int(model.optimizer.iterations) == 12
        weights.append(model.get_weights())
    warned, silent = texts
    assert (len(warned), silent) == (1, [])
    assert name in warned[0]
    assert len(engagements) >= 2
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def _printer(original: Any, path: Path) -> Any:
    return lambda *what, **_: original(*what, output_stream=f"file://{path}")


DETERMINISM = """
import json, keras, numpy as np
import tensorflow as tf
from keras_sgd_plus import SGDPlus
from tests.support.internals import compiled
from tests.support.twins import dense_data, dense_model

tf.config.experimental.enable_op_determinism()
choices, wants_xla = [], compiled.wants_xla
def remembered(*args):
    choices.append(wants_xla(*args))
    return choices[-1]
compiled.wants_xla = remembered
x, y = dense_data(20)
weights = []
for optimizer, batch_size in (
    (SGDPlus(0.05, 0.9, seed=1), 7),
    (SGDPlus(0.05, 0.9, seed=1), 7),
    (SGDPlus(0.05, 0.9, order="given"), 7),
    (keras.optimizers.SGD(0.05, 0.9), 1),
):
    keras.utils.set_random_seed(1)
    model = dense_model()
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
print(json.dumps({
    "xla": choices,
    "keras_xla": bool(model.jit_compile),
    "repeated": bool((weights[0] == weights[1]).all()),
    "gap": float(np.abs(weights[2] - weights[3]).max()),
}))
"""


@pytest.mark.matrix
def test_op_determinism_keeps_xla() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DETERMINISM], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["xla"] and all(seen["xla"])
    assert not seen["keras_xla"]  # as Keras itself decides under determinism
    assert seen["repeated"]
    assert seen["gap"] < 1e-6


def _resizing(dtype: str) -> keras.Model:
    keras.config.set_dtype_policy(dtype)
    resize = layers.UpSampling2D(2, interpolation="bilinear")
    hidden = [layers.Conv2D(4, 1, activation="relu"), resize]
    last = layers.Dense(1, dtype="float64" if dtype == "float64" else "float32")
    return keras.Sequential(
        [keras.Input((4, 4, 3)), *hidden, layers.GlobalAveragePooling2D(), last]
    )


IMAGES = np.random.default_rng(0).normal(size=(12, 4, 4, 3))
REFUSED_LATE = "it mixes floating-point types in .*ResizeBilinearGrad"


@pytest.mark.parametrize("dtype", ["float64", *matrix("mixed_bfloat16")])
@pytest.mark.parametrize("how", ["fit", *matrix("steps", "on_batch", "by_hand")])
def test_what_xla_refuses_while_it_compiles_runs_without_it(
    how: str, dtype: str, engagements: list[str], compiled_runs: list[bool]
) -> None:
    """The first batch is the one that fails, and is not lost."""
    y = IMAGES.mean((1, 2, 3))
    runs = []
    for cls, size in ((SGDPlus, 6), (keras.optimizers.SGD, 1)):
        keras.utils.set_random_seed(1)
        model = _resizing(dtype)
        is_ours = cls is SGDPlus
        steps = 2 if how == "steps" and is_ours else 1
        own = {"order": "given"} if is_ours else {}
        model.compile(cls(0.01, **own), "mse", steps_per_execution=steps)

        def train(model: Any = model, size: int = size, is_ours: bool = is_ours) -> Any:
            if how in ("fit", "steps") or not is_ours:
                return model.fit(IMAGES, y, size, shuffle=False, verbose=0)
            for i in range(0, 12, size):
                batch = IMAGES[i : i + size], y[i : i + size]
                if how == "on_batch":
                    model.train_on_batch(*batch)
                else:
                    model.optimizer.train_step(model, batch)
            return None

        if is_ours:
            assert len(caught_by(train, "XLA cannot compile")) == 1
        else:
            train()
        runs.append(model.get_weights())
        assert int(model.optimizer.iterations) == 12
    assert engagements and compiled_runs[-1] is False
    bound = 1e-6 if dtype == "float64" else 1e-2
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def test_an_error_that_is_not_of_xla_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the package, or of the running program, though of a class that XLA has."""
    x, y = dense_data()
    model = _model()

    def fails(*args: Any) -> Any:
        raise tf.errors.InternalError(None, None, "a bug of the package")

    monkeypatch.setattr(step, "_commit", fails)
    with pytest.raises(tf.errors.InternalError, match="a bug of the package"):
        model.fit(x, y, batch_size=8, verbose=0)


@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
def test_an_error_of_the_package_is_no_refusal_of_xla(error: type[Exception]) -> None:
    def broken(x: Any) -> Any:
        raise error("a bug of the package")

    function = tf.function(broken, jit_compile=True, autograph=False)
    traced = xla.Traced(function, [tf.TensorSpec((3,))])
    with pytest.raises(error, match="a bug of the package"):
        xla.error_of(traced, "hlo")


def test_an_error_while_xla_is_asked_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise KeyError("a bug of the package")

    monkeypatch.setattr(xla, "surely_takes", lambda graph: False)  # so it is asked
    monkeypatch.setattr(type(tf.function(fails)), "experimental_get_compiler_ir", fails)
    x, y = dense_data()
    with pytest.raises(KeyError, match="a bug of the package"):
        _model().fit(x, y, batch_size=8, verbose=0)
