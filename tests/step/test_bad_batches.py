"""A bad batch before or between good ones raises a clear error, and the weights stay.

test_batch_checks.py has the messages of this package; here are errors of Keras and
TensorFlow, too. The loop commits a whole batch, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sgd_plus import SGDPlus
from tests.support.tiers import tiered_keys
from tests.support.twins import dense_data
from tests.support.versions import KERAS

X, Y = dense_data(6)
W = np.ones(6, "float32")
OBJECTS = np.array([object()] * 6, dtype=object)
MIXED = np.array([[1, "a", None, 2.0, 3]] * 6, dtype=object)

# The fault -> the batch, and patterns of its errors: those of the package, of Keras's
# data adapters, of the model, or of TensorFlow after it has relaxed a shape.
LENGTHS = "same number of examples|cardinality is ambiguous"
NO_AXIS = (
    "must come in batches|x\\[None\\]|tuple index out of range|Unrecognized data type"
)
FEATURES = "expected axis -1 of input shape to have value 5|Matrix size-incompatible"
TEXT = "must be numbers. Received: . of strings|Invalid dtype: (str|bytes)"
NO_ARRAY = "Unrecognized data type|Only input tensors|must come in batches|to Tensor"
AS_OBJECT = "Invalid dtype: object|Unsupported object type|Convert numbers with|shape"
NO_X = "None was passed|at least one|not optional" if KERAS > (3, 13) else "inputs=None"
UNFIT = "Dimensions must be equal|[Ii]ncompatible shapes"
STRUCTURE = "structure"

BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    # lengths
    "x_shorter": ((X[:3], Y), LENGTHS),
    "y_shorter": ((X, Y[:3]), LENGTHS),
    "y_empty": ((X, Y[:0]), LENGTHS),
    "x_empty": ((X[:0], Y), LENGTHS),
    "weight_shorter": ((X, Y, W[:5]), LENGTHS),
    "weight_empty": ((X, Y, W[:0]), LENGTHS),
    # ranks and shapes
    "x_scalar": ((np.float32(1), Y), NO_AXIS),
    "y_scalar": ((X, np.float32(0)), NO_AXIS),
    "x_rank_1": (
        (X[:, 0], Y),
        "Invalid input shape|must come in batches|known number of axes",
    ),
    "x_fewer_features": ((X[:, :4], Y), FEATURES),
    "x_no_features": ((X[:, :0], Y), FEATURES),
    "y_more_outputs": ((X, np.ones((6, 3), "float32")), UNFIT),
    "y_no_outputs": ((X, Y[:, :0]), UNFIT),
    # dtypes
    "x_text": ((X.astype(str), Y), TEXT),
    "x_bytes": ((X.astype(bytes), Y), TEXT),
    "y_text": ((X, Y.astype(str)), TEXT),
    "weight_text": ((X, Y, W.astype(str)), TEXT.replace(": .", ": sample_weight")),
    "x_dates": ((np.zeros((6, 5), "datetime64[s]"), Y), "datetime64|DType"),
    "x_objects": ((OBJECTS, Y), AS_OBJECT),
    "x_mixed": ((MIXED, Y), AS_OBJECT),
    "x_ragged": ((np.array([[1.0], [1.0, 2.0]] * 3, object), Y), AS_OBJECT),
    "y_objects": ((X, OBJECTS), AS_OBJECT),
    "weight_objects": ((X, Y, OBJECTS), AS_OBJECT),
    # no arrays, other structures
    "x_none": ((None, Y), NO_X),
    "y_none": ((X, None), "`y` must be given"),
    "x_string": (("abc", Y), NO_ARRAY),
    "y_string": ((X, "abc"), NO_ARRAY),
    "weight_string": ((X, Y, "abc"), NO_ARRAY),
    "x_object": ((object(), Y), NO_ARRAY),
    "y_object": ((X, object()), NO_ARRAY),
    "x_set": (({1.0, 2.0}, Y), "Unrecognized data type|generic TraceType"),
    "x_function": ((lambda: X, Y), NO_ARRAY),
    "x_rows_of_python": ((X.tolist(), Y.tolist()), NO_ARRAY),
    "x_empty_list": (([], Y), "not connected|structure"),
    "x_dict": (({"a": X}, Y), STRUCTURE),
    "x_empty_dict": (({}, Y), STRUCTURE),
    "y_list": ((X, [Y, Y]), STRUCTURE),
    "y_empty_list": ((X, []), STRUCTURE),
    "y_dict": ((X, {"a": Y}), "Expected float32, but got a"),
    "weight_dict": ((X, Y, {"a": W}), "Expected float32, but got"),
}


# One or two of each kind of fault.
DEFAULT = (
    *("y_shorter", "x_scalar", "y_more_outputs"),
    *("x_text", "x_objects", "y_none", "x_dict"),
)


def fit(model: Any, *data: Any) -> None:
    x, y, weight = (*data, None)[:3]
    arguments = {"batch_size": 6, "shuffle": False, "verbose": 0}
    model.fit(x, y, sample_weight=weight, **arguments)


def train_on_batch(model: Any, *data: Any) -> None:
    model.train_on_batch(*data)


def by_hand(model: Any, *data: Any) -> None:
    model.optimizer.train_step(model, data)


CLEAR = (
    *(TypeError, ValueError, tf.errors.InvalidArgumentError),
    IndexError,  # of fit's data adapter, for a scalar
    RuntimeError,  # of Keras, for x=[]
    UserWarning,  # of fit, for no data at all: an error in these tests
)
WAYS = [fit, pytest.param(train_on_batch, marks=pytest.mark.slow), by_hand]


@pytest.mark.parametrize("train", WAYS, ids=["fit", "on_batch", "by_hand"])
@pytest.mark.parametrize("kind", tiered_keys(BAD, *DEFAULT))
def test_bad_batch(kind: str, train: Callable[..., None]) -> None:
    data, says = BAD[kind]
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model.compile(SGDPlus(0.05, momentum=0.9, jit_compile=False), "mse")
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    for num_good in (1, 2):  # bad, good, bad, good
        before = [v.numpy() for v in state]
        with pytest.raises(CLEAR) as raised:
            train(model, *data)
        told = [str(raised.value), *getattr(raised.value, "__notes__", [])]
        assert re.search(says, "\n".join(told)), told
        for a, v in zip(before, state, strict=True):
            np.testing.assert_array_equal(a, v.numpy())
        train(model, X, Y)
        assert int(model.optimizer.iterations) == 6 * num_good
        for a, w in zip(before, model.get_weights(), strict=False):
            assert np.isfinite(w).all()
            assert not np.array_equal(a, w)
