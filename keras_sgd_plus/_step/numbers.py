"""Numbers of a live optimizer, in a variable that compiled steps read.

So a callback may assign `momentum` for each batch: nothing is traced or compiled anew.
"""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from keras_sgd_plus import _rule
from keras_sgd_plus._private import tensorflow as private_tensorflow
from keras_sgd_plus._private.types import Optimizer, Tensor

# Per optimizer, (numbers,) float64. It is not on the optimizer because Keras saves the
# variables of one, and a plain SGDPlus has those of a plain SGD.
_vectors: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def of(optimizer: Optimizer) -> Tensor:
    """The numbers that the rule of an optimizer computes with, (numbers,) float64.

    Read outside the compiled loop, since a replica may compile for another device.
    """
    vector = _vectors.get(optimizer)
    if vector is None:
        vector = private_tensorflow.variable((len(_rule.all_numbers()),), tf.float64)
        _vectors[optimizer] = vector
        refresh(optimizer)
    return _rule.as_vector(optimizer, _rule.all_numbers(), vector.read_value())


def refresh(optimizer: Optimizer) -> None:
    """Lets steps that are compiled already see settings that were just assigned."""
    vector = _vectors.get(optimizer)
    if vector is not None:
        with tf.init_scope():
            vector.assign(_rule.on_host(optimizer, _rule.all_numbers()))
