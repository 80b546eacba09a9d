"""What a save says of its run, so that no other run takes it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_sgd_plus._callbacks.seeded_arrays import SeededArrays
from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer

Identity = Mapping[str, Any]
KEY = "run/.ATTRIBUTES/py_state"  # of a save that has one; those of 0.2.0 have none


class RunState(tf.train.experimental.PythonState):
    """A part of a `tf.train.Checkpoint`: the identity of the run."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def serialize(self) -> str:
        """Called by TensorFlow for each save."""
        return json.dumps(self._identity)

    def deserialize(self, string_value: Any) -> None:
        """Called by TensorFlow; the identity has been compared before."""
        del string_value


def identity_of(
    model: Model, outer: Optimizer, fit: keras_trainer.Fit | None
) -> dict[str, Any]:
    """The shapes of all that is saved, and the size of the data.

    Names do not count: a model that is made again in the same process has others.

    Args:
        model: built.
        outer: its optimizer, built.
        fit: that runs, or None where it is not found.
    """
    return {
        "model": [_shown(v) for v in model.variables],
        "optimizer": [_shown(v) for v in outer.variables],
        **_of_data(fit),
    }


def _shown(variable: Any) -> str:
    return f"{variable.dtype}{list(variable.shape)}"


def _of_data(fit: keras_trainer.Fit | None) -> dict[str, Any]:
    if fit is None:
        return {}
    data = fit.dataset
    if isinstance(data, SeededArrays):
        return {
            "examples": data.num_examples,
            "batch size": data.batch_size,
            "seed of SeededArrays": data.seed,
        }
    return {"examples": fit.num_examples, "batch size": fit.array_batch_size}


def differences(there: Identity, here: Identity) -> list[str]:
    """In words, what differs between the run of a save and this one."""
    found = []
    for name in ("model", "optimizer"):
        one, other = there[name], here[name]
        if len(one) != len(other):
            found.append(f"{name} with {len(one)} variables there, {len(other)} here")
        elif one != other:
            pairs = zip(one, other, strict=True)
            a, b = next(pair for pair in pairs if len(set(pair)) > 1)
            found.append(f"{name} with {a} there, {b} here")
    for name in [n for n in here if n not in ("model", "optimizer")]:
        if there.get(name) != here[name]:
            found.append(f"{name} {there.get(name)} there, {here[name]} here")
    return found


def saved_identity(path: str) -> Identity | None:
    """The identity in a save; None in one of version 0.2.0."""
    reader = tf.train.load_checkpoint(path)
    if not reader.has_tensor(KEY):
        return None
    return json.loads(reader.get_tensor(KEY))
