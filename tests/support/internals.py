"""The parts of the package that tests look into, named in one place."""

from keras_sgd_plus import _compilations as compilations
from keras_sgd_plus import _replicas as replicas
from keras_sgd_plus._advice import notices
from keras_sgd_plus._batch import compiled, step, walk_batch
from keras_sgd_plus._batch.walk_batch import visiting_order
from keras_sgd_plus._callbacks import exact_resume, log_records
from keras_sgd_plus._fit import hooks
from keras_sgd_plus._forms import (
    convolution,
    installation,
    layout,
    one_kernel,
    pooled,
    reductions,
    tracing,
)
from keras_sgd_plus._lazy import block_plan, blocks, table_rows
from keras_sgd_plus._lazy import tables as lazy_tables
from keras_sgd_plus._loop import context, update, walk
from keras_sgd_plus._loop.context import RuleVariables
from keras_sgd_plus._loop.scope import Carry, Scope
from keras_sgd_plus._optimizer import settings
from keras_sgd_plus._private import (
    keras_model,
    keras_optimizer,
    keras_trainer,
    xla,
)
from keras_sgd_plus._rate import choice, search
from keras_sgd_plus._report import running_sums
from keras_sgd_plus._rule import gradient, parts, rule
from keras_sgd_plus._rule.part import Part, Slot, State, Update
from keras_sgd_plus._rule.rule import Rule

__all__ = [
    "Carry",
    "Part",
    "Rule",
    "RuleVariables",
    "Scope",
    "Slot",
    "State",
    "Update",
    "block_plan",
    "blocks",
    "choice",
    "compilations",
    "compiled",
    "convolution",
    "exact_resume",
    "context",
    "gradient",
    "hooks",
    "installation",
    "keras_model",
    "keras_optimizer",
    "keras_trainer",
    "layout",
    "lazy_tables",
    "log_records",
    "notices",
    "one_kernel",
    "parts",
    "pooled",
    "reductions",
    "replicas",
    "rule",
    "running_sums",
    "search",
    "settings",
    "step",
    "table_rows",
    "tracing",
    "update",
    "visiting_order",
    "walk",
    "walk_batch",
    "xla",
]
