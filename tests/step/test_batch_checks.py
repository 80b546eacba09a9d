"""Every message about a batch has its class and says the fix."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.messages import (
    INVALID,
    WEIGHTS,
    Row,
    X,
    Y,
    compiled,
    step,
    stream,
    streamed,
)

NOT_ALIKE = "Give every example its target"


def _counted(one: str, its_size: int, other: str, size: int) -> str:
    """The pattern of an error of the running graph, which puts the numbers in."""
    return (
        f"Received: {one} with\\] \\[{its_size}\\] \\[and {other} with\\] \\[{size}\\] "
        f"\\[. {NOT_ALIKE}"
    )


BATCHES: dict[str, Row] = {
    "nothing": ("batch", lambda m: step(m, None), ValueError, "Pass x as arrays"),
    "no_axis_x": ("batch", lambda m: step(m, 1.0), ValueError, r"x\[None\]"),
    "no_axis_y": ("batch", lambda m: step(m, X, 1.0), ValueError, r"x\[None\]"),
    "unbatched_dataset": (
        "batched",
        lambda m: stream(m, tf.data.Dataset.from_tensor_slices((X, Y))),
        ValueError,
        r"^The data must come in batches; was .batch\(n\) forgotten\?.*"
        r"x of shape \(5,\), y of shape \(2,\). Write dataset.batch\(1024\)",
    ),
    "unbatched_without_target": (
        "batched",
        lambda m: stream(m, tf.data.Dataset.from_tensor_slices(X)),
        ValueError,
        r"was .batch\(n\) forgotten",
    ),
    "unbatched_generator": (
        "batched",
        lambda m: stream(m, (pair for pair in zip(X, Y, strict=True))),
        ValueError,
        r"was .batch\(n\) forgotten",
    ),
    "unbatched_by_hand": (
        "batched",
        lambda m: step(m, X[0], 1.0),
        ValueError,
        r"x of shape \(5,\), y of shape \(\).*x\[None\]",
    ),
    "ragged_rows": (
        "rectangular",
        lambda m: step(m, np.array([np.ones(5), np.ones(4)] * 3, dtype=object), Y),
        ValueError,
        "Pad the examples to one length",
    ),
    "numbers_as_objects": (
        "rectangular",
        lambda m: step(m, X.astype(object), Y),
        ValueError,
        r'Convert numbers with .astype\("float32"\)',
    ),
    **{
        f"text_{name}": ("kinds", trigger, TypeError, f"`{name}` must be numbers.*Map")
        for name, trigger in {
            "x": lambda m: step(m, X.astype(str), Y),
            "y": lambda m: m.train_on_batch(X, Y.astype(bytes)),
            "sample_weight": lambda m: step(m, X, Y, WEIGHTS.astype(str)),
        }.items()
    },
    "text_in_fit": (
        "kinds",
        lambda m: stream(m, tf.data.Dataset.from_tensors((X, tf.as_string(Y)))),
        TypeError,
        "np.unique",
    ),
    "no_target": (
        "kinds",
        lambda m: m.train_on_batch(X),
        ValueError,
        "`y` must be given.*or compile without a loss",
    ),
    "no_target_in_fit": (
        "kinds",
        lambda m: _fit_x(m),
        ValueError,
        "`y` must be given.*or compile without a loss",
    ),
    "y_shorter": ("batch", lambda m: step(m, X, Y[:2]), ValueError, NOT_ALIKE),
    "y_longer": ("batch", lambda m: step(m, X[:2], Y), ValueError, NOT_ALIKE),
    "weight_shorter": (
        "batch",
        lambda m: step(m, X, Y, WEIGHTS[:5]),
        ValueError,
        "Received: x with 6 and sample_weight with 5",
    ),
    "y_shorter_in_fit": (
        "batch",
        lambda m: stream(m, streamed(X, Y[:3], batch_size=None, static=(0,))),
        INVALID,
        _counted("x", 6, "y", 3),
    ),
    "y_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X, Y[:3], batch_size=None)),
        INVALID,
        _counted("x", 6, "y", 3),
    ),
    "x_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X[:3], Y, batch_size=6)),
        INVALID,
        _counted("x", 3, "y", 6),
    ),
    "x_dynamic_y_static": (
        "batch",
        lambda m: stream(m, streamed(X[:3], Y, batch_size=6, static=(1,))),
        INVALID,
        _counted("x", 3, "y", 6),
    ),
    "weight_shorter_dynamic": (
        "batch",
        lambda m: stream(m, streamed(X, Y, WEIGHTS[:3], batch_size=None)),
        INVALID,
        _counted("x", 6, "sample_weight", 3),
    ),
    "ragged_by_hand": (
        "batch",
        lambda m: train_step_of_eager(m, tf.RaggedTensor.from_tensor(X), Y[:3]),
        ValueError,
        "Received: x with 6 and y with 3. Give every",
    ),
    "static_in_fit": (
        "batch",
        lambda m: stream(m, tf.data.Dataset.from_tensors((X, Y[:3]))),
        ValueError,
        "Received: x with 6 and y with 3",
    ),
    "rank_unknown": (
        "batch",
        lambda m: stream(m, streamed_without_rank()),
        ValueError,
        "set_shape",
    ),
}


def train_step_of_eager(model: Any, *data: Any) -> Any:
    model.run_eagerly = True
    return step(model, *data)


def streamed_without_rank() -> Any:
    # Only the sample weight may lack a rank: Keras needs the rank of x and y.
    signature = (
        tf.TensorSpec((None, 5), tf.float32),
        tf.TensorSpec((None, 2), tf.float32),
        tf.TensorSpec(None, tf.float32),
    )
    return tf.data.Dataset.from_generator(
        lambda: iter([(X, Y, WEIGHTS)]), output_signature=signature
    )


@pytest.mark.parametrize("jit_compile", [False, "auto"], ids=["plain", "xla"])
@pytest.mark.parametrize("row", BATCHES.values(), ids=list(BATCHES))
def test_batch(row: Row, jit_compile: Any) -> None:
    _, trigger, error, fix = row
    model = compiled(plus={"jit_compile": jit_compile})
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    before = [v.numpy() for v in state]
    with pytest.raises(error, match=fix) as raised:
        trigger(model)
    assert "Received: " in str(raised.value)
    for a, b in zip(before, state, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("row", ["y_shorter", "weight_shorter"])
def test_batch_of_an_eager_model(row: str) -> None:
    _, trigger, error, fix = BATCHES[row]
    model = compiled(run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(error, match=fix):
        trigger(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_casts_nothing_may_be_text_or_missing(engagements: list[str]) -> None:
    # An input that is declared as text, and losses that go around Keras's own.
    class Lengths(keras.losses.Loss):
        def __call__(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return tf.reduce_mean(tf.cast(tf.strings.length(y), tf.float32) - y_pred)

        def call(self, y: Any, y_pred: Any) -> Any:
            raise NotImplementedError

    class OwnLoss(keras.Sequential):
        def compute_loss(self, x: Any, y: Any, y_pred: Any, *more: Any) -> Any:
            return tf.reduce_mean(tf.square(y_pred))

    words = np.array([["a", "bc", "def", "", "e"]] * 6)
    body = [
        keras.Input((5,), dtype="string"),
        layers.StringLookup(vocabulary=["a", "e"], output_mode="multi_hot"),
        layers.Dense(2),
    ]
    for model, y in [
        (compiled(keras.Sequential(body), loss=Lengths()), words[:, :2]),
        (compiled(OwnLoss(body)), words),
        (compiled(OwnLoss(body)), None),
    ]:
        step(model, words, y)
        assert int(model.optimizer.iterations) == 6
    assert len(engagements) >= 3


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "by_hand"])
def test_errors_of_keras_get_a_note_with_the_batch(by_hand: bool) -> None:
    # The model sees one example at a time, so Keras's error names other shapes.
    model = compiled()
    with pytest.raises(ValueError, match="equal, but are 3 and 2") as raised:
        y = np.ones((6, 3), "float32")
        step(model, X, y) if by_hand else model.train_on_batch(X, y)
    (note,) = raised.value.__notes__
    assert "x: (6, 5) float32, y: (6, 3) float32. It feeds the model 1 example" in note


@pytest.mark.parametrize(
    ("declared", "x"),
    [((1,), X[:, 0]), ((1,), X[:1, 0]), ((5, 1), X), ((1, 1), X[:1, :1])],
    ids=str,
)
def test_batches_that_lack_a_last_axis_are_no_single_examples(
    declared: tuple[int, ...], x: np.ndarray
) -> None:
    # Keras appends an axis of length 1 where the input has one.
    body = [keras.Input(declared), layers.Flatten(), layers.Dense(2)]
    model = compiled(keras.Sequential(body))
    step(model, x, Y[: len(x)])
    assert int(model.optimizer.iterations) == len(x)


def test_a_batch_of_another_rank_is_explained() -> None:
    # After batches of two ranks TensorFlow relaxes the shape for all later ones.
    model = compiled()
    model.train_on_batch(X, Y[:, :, None])  # broadcast, as by Keras
    with pytest.raises(ValueError, match="compile the model anew"):
        model.train_on_batch(X, Y)
    model.compile(model.optimizer, "mse")
    model.train_on_batch(X, Y)
    assert int(model.optimizer.iterations) == 12


def _fit_x(model: Any) -> Any:
    return model.fit(X, verbose=0)
