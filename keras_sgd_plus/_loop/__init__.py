"""The walk over one batch: tensors in, tensors out, one update per group of examples.

    carry = tensors of model, optimizer, metric and seed variables
    while example_index < num_examples:
        carry = update(carry, example)      # forward, tape, update rule, metrics

*Walk*: to make one update after the other over a batch. *Carry*: the tensors that go
from one update to the next. *Group*: the examples of one update, one or more. No
variable is written in here.
"""

from keras_sgd_plus._loop import examples
from keras_sgd_plus._loop.carry import Carry
from keras_sgd_plus._loop.example_update import ExampleUpdate
from keras_sgd_plus._loop.trace_again import TraceAgain
from keras_sgd_plus._loop.walk import (
    Before,
    Specs,
    WalkMemory,
    WalkResult,
    first_specs,
    walk,
    walk_group,
)

__all__ = [
    "Before",
    "Carry",
    "ExampleUpdate",
    "Specs",
    "TraceAgain",
    "WalkMemory",
    "WalkResult",
    "examples",
    "first_specs",
    "walk",
    "walk_group",
]
