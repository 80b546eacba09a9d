"""Tests of messages share this tiny model, batches, and rows of errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.internals import hooks
from tests.support.twins import dense_data, linear_model

# For comparisons with Keras at `batch_size=1`, which normalises one example by itself,
# too, and for schedules that are short so that a short run sees all of them.
normalises = pytest.mark.filterwarnings(
    "ignore:SGDPlus feeds the model one example at a time, so .*BatchNormalization"
)
short_schedules = pytest.mark.filterwarnings(
    "ignore:A learning-rate schedule should last longer than the first epoch"
)


def compiled(model: Any = None, *, plus: Any = None, **compile: Any) -> Any:
    """A model compiled with SGDPlus, without XLA unless asked: most never run."""
    model = linear_model() if model is None else model
    arguments = {"order": "given", "jit_compile": False, **(plus or {})}
    model.compile(
        SGDPlus(0.05, momentum=0.9, **arguments), **{"loss": "mse", **compile}
    )
    return model


def step(model: Any, *data: Any) -> Any:
    return model.optimizer.train_step(model, data)


def streamed(*parts: Any, batch_size: int | None = 4, static: Any = ()) -> Any:
    """A dataset of batches whose size only the running graph knows, but for `static`.

    Args:
        parts: arrays, (num_examples, ...); a batch takes `batch_size` of each, so the
            last batches of shorter arrays are short or empty.
        batch_size: None for one batch of all.
        static: positions of parts whose batch size tracing may know.
    """
    size = batch_size or len(parts[0])

    def generate() -> Any:
        for i in range(0, max(len(part) for part in parts), size):
            yield tuple(part[i : i + size] for part in parts)

    signature = tuple(
        tf.TensorSpec((size if i in static else None, *part.shape[1:]), part.dtype)
        for i, part in enumerate(parts)
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def stream(model: Any, dataset: Any) -> Any:
    return model.fit(dataset, shuffle=False, verbose=0)


def caught_by(function: Callable[[], Any], match: str) -> list[str]:
    """Texts of the warnings, which must all say `match`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    texts = [str(w.message) for w in caught]
    assert all(match in text for text in texts), texts
    return texts


X, Y = dense_data(6)
WEIGHTS = np.ones(6, "float32")


def fit(model: Any, **kwargs: Any) -> Any:
    return model.fit(X, Y, **{"batch_size": 3, "verbose": 0, **kwargs})


# The function that writes the message, what is done with a model, the error's class,
# and a pattern of the message.
Row = tuple[str, Callable[[Any], Any], type[Exception], str]
ErrorRow = tuple[Callable[[], Any], Row]  # and a function that makes the model
INVALID = tf.errors.InvalidArgumentError


def error_rows(errors: dict[str, ErrorRow]) -> list[Any]:
    """A table of errors as parameters `make` and `row` of `test_error`."""
    return [pytest.param(*row, id=name) for name, row in errors.items()]


def assert_refused(make: Callable[[], Any], row: Row) -> None:
    """The error has its class and says the fix, and the weights stay."""
    _, trigger, error, fix = row
    model = compiled(make())
    before = model.get_weights()
    with pytest.raises(error, match=fix) as raised:
        trigger(model)
    assert type(raised.value) is error
    assert "Received: " in str(raised.value)
    hooks.install()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
