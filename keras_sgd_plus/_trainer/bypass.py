"""Optimizers that a `fit` used, and whose loop it went around.

Keras calls `finalize_variable_values` of `model.optimizer` alone, at the end of `fit`.
A model may hold others, in attributes, lists or nowhere at all. So an optimizer notes
here that gradients were applied, and the end of `fit` looks at the notes.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_sgd_plus._private import keras_trainer
from keras_sgd_plus._private.types import Model, Optimizer
from keras_sgd_plus._trainer.optimizers import per_example, unwrap

# Sticky, because Keras traces a train function once and keeps it between fits. Weak,
# and no attributes of the optimizer, which Keras's saver would walk.
_engaged: weakref.WeakSet[Any] = weakref.WeakSet()
_applied: weakref.WeakSet[Any] = weakref.WeakSet()
# Model -> optimizers that were applied while it was fitted, by itself or a callback.
_of_fits: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[Any] = weakref.WeakSet()

# Attributes in which TensorFlow and Keras keep what they track begin so.
_OF_TRACKING = ("_self_", "_tracker")


def engaged(optimizer: Optimizer) -> None:
    """Notes that an SGDPlus has walked a batch, or will, in the trace that is made."""
    _engaged.add(optimizer)


def is_engaged(optimizer: Optimizer) -> bool:
    """Whether it has ever walked a batch."""
    return optimizer in _engaged


def applied(optimizer: Optimizer, fitted: Iterable[Model]) -> None:
    """Notes that gradients were applied where `fit` would; loops by hand do not count.

    Args:
        optimizer: the SGDPlus.
        fitted: the models whose `fit` runs.
    """
    if keras_trainer.inside_strategy_run():
        _applied.add(optimizer)
        for model in fitted:
            _of_fits.setdefault(model, weakref.WeakSet()).add(optimizer)


def warn_of(model: Model) -> None:
    """Warns at the end of `fit`, once per optimizer whose loop was bypassed."""
    own = unwrap(getattr(model, "optimizer", None))
    found = list(_of_fits.pop(model, ()))
    if own in _applied and own not in found:
        found.append(own)
    for optimizer in found:
        meant = per_example(optimizer) is None
        if meant or optimizer in _engaged or optimizer in _warned:
            continue
        _warned.add(optimizer)
        if optimizer is own:
            warnings.warn(_bypassed(optimizer.name))
        else:
            place = next(_places(model, optimizer), "optimizer")
            warnings.warn(_bypassed_elsewhere(optimizer.name, model.name, place))


def _places(model: Model, optimizer: Optimizer) -> Iterator[str]:
    # How the model's code can name an optimizer that it holds: attributes first.
    held = {k: v for k, v in vars(model).items() if not k.startswith(_OF_TRACKING)}
    for name, value in held.items():
        if unwrap(value) is optimizer:
            yield f"self.{name}"
        if isinstance(value, keras.Model) and value is not model:
            if unwrap(getattr(value, "optimizer", None)) is optimizer:
                yield f"self.{name}.optimizer"
    for name, value in held.items():
        items: Any = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        for key, item in items:
            if unwrap(item) is optimizer:
                yield f"self.{name}[{key!r}]"


def _bypassed(name: str) -> str:
    # `fit` ran, and the loop did not.
    return (
        f"fit() used the optimizer {name!r} for one update per batch: the model's own "
        "train_step called apply_gradients, so SGDPlus never saw single examples. "
        "Return self.optimizer.train_step(self, data), or super().train_step(data), "
        "from train_step. If one update per batch is meant, say so with "
        "SGDPlus(..., examples_per_update=None)."
    )


def _bypassed_elsewhere(name: str, model_name: str, place: str) -> str:
    return (
        f"fit() used the optimizer {name!r} for one update per batch: train_step of "
        f"the model {model_name!r} called apply_gradients or apply, so SGDPlus never "
        "saw single examples. In place of the tape and that call, write logs = "
        f"{place}.train_step(network, (x, y)) in train_step. There network is the "
        "keras.Model that this optimizer trains, compiled with its loss; "
        "examples/gan.py trains two networks so. If one update per batch is meant, say "
        "so with SGDPlus(..., examples_per_update=None)."
    )
