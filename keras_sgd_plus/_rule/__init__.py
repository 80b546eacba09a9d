"""The mathematics of an update: pure functions of tensors.

A `Rule` is a chain of `Part`s; `GRADIENT_PARTS` and `WEIGHT_PARTS` in `rule.py` list
them in order. A part names the settings that it is made from and the state that it
keeps per weight (`Slot`). A gradient is dense, rows of a table, or an outer product
(`gradient.py`).
"""

from keras_sgd_plus._rule import capped_share, capped_step, overrides
from keras_sgd_plus._rule.accumulate import ACCUMULATORS, Accumulate
from keras_sgd_plus._rule.average import AVERAGES, Average
from keras_sgd_plus._rule.descent import VELOCITIES, exact_decay
from keras_sgd_plus._rule.gradient import (
    Gradient,
    OuterGradient,
    RowsGradient,
    as_gradient,
    norm_of,
    outer,
)
from keras_sgd_plus._rule.inner import inner, norm
from keras_sgd_plus._rule.loss_scale import LossScale, apply_scaled
from keras_sgd_plus._rule.numbers import Numbers, as_vector, by_name, on_host
from keras_sgd_plus._rule.part import (
    Part,
    Slot,
    State,
    Update,
    both,
    select,
    window_ends,
)
from keras_sgd_plus._rule.rule import Rule, Updated, all_numbers, make_slots, slots
from keras_sgd_plus._rule.settings import compiled_for

__all__ = [
    "ACCUMULATORS",
    "AVERAGES",
    "VELOCITIES",
    "Accumulate",
    "Average",
    "Gradient",
    "LossScale",
    "OuterGradient",
    "Numbers",
    "Part",
    "RowsGradient",
    "Rule",
    "Slot",
    "State",
    "Update",
    "Updated",
    "all_numbers",
    "apply_scaled",
    "as_gradient",
    "as_vector",
    "both",
    "by_name",
    "capped_share",
    "capped_step",
    "compiled_for",
    "exact_decay",
    "inner",
    "make_slots",
    "norm",
    "norm_of",
    "on_host",
    "outer",
    "overrides",
    "select",
    "slots",
    "window_ends",
]
