"""The package's private modules; every test imports them from here."""

from __future__ import annotations

import importlib

from keras_sgd_plus._callbacks import checks as callback_checks
from keras_sgd_plus._callbacks import packing, rows
from keras_sgd_plus._distribute import strategy
from keras_sgd_plus._loop import Carry, backward, example_update
from keras_sgd_plus._loop.rule_variables import RuleVariables
from keras_sgd_plus._loop.scope import Scope
from keras_sgd_plus._lowering import (
    channels,
    convolution,
    depthwise,
    installation,
    keras_functions,
    layout,
    one_kernel,
    pooled,
    random,
    scope,
    sums,
)
from keras_sgd_plus._optimizer import arguments
from keras_sgd_plus._pending import (
    block_plan,
    block_products,
    blocks,
    clocks,
    coefficients,
    inputs,
)
from keras_sgd_plus._pending import tables as pending_tables
from keras_sgd_plus._private import (
    keras_backend,
    keras_graph,
    keras_optimizer,
    keras_trainer,
    xla,
)
from keras_sgd_plus._rule import (
    Part,
    Rule,
    Slot,
    State,
    Update,
    capped_step,
    gradient,
    numbers,
    rule,
)
from keras_sgd_plus._step import batch, compiled, padding, refusal, visiting_order
from keras_sgd_plus._trainer import first_call, patches, schedules

# The folder has a function of the same name.
walk = importlib.import_module("keras_sgd_plus._loop.walk")

__all__ = [
    "Carry",
    "Part",
    "Rule",
    "RuleVariables",
    "Scope",
    "Slot",
    "State",
    "Update",
    "arguments",
    "backward",
    "batch",
    "block_plan",
    "block_products",
    "inputs",
    "blocks",
    "callback_checks",
    "capped_step",
    "channels",
    "clocks",
    "coefficients",
    "compiled",
    "convolution",
    "depthwise",
    "example_update",
    "first_call",
    "gradient",
    "installation",
    "keras_backend",
    "keras_functions",
    "keras_graph",
    "keras_optimizer",
    "keras_trainer",
    "layout",
    "numbers",
    "one_kernel",
    "packing",
    "padding",
    "pooled",
    "patches",
    "pending_tables",
    "random",
    "refusal",
    "rows",
    "rule",
    "schedules",
    "scope",
    "sums",
    "strategy",
    "visiting_order",
    "walk",
    "xla",
]
