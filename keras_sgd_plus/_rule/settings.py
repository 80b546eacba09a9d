"""Which settings of an optimizer are fixed in a compiled loop.

The trainer and the step both ask; the rule names most of these settings.
"""

from __future__ import annotations

from typing import Any

from keras_sgd_plus._private import keras_optimizer
from keras_sgd_plus._private.types import Optimizer
from keras_sgd_plus._rule import rule
from keras_sgd_plus._rule.numbers import switch

_OF_THE_LOOP = ("examples_per_update", "order", "seed", "nonfinite", "jit_compile")


def compiled_for(optimizer: Optimizer, with_numbers: bool) -> tuple[Any, ...]:
    """The values of an SGDPlus that a compiled loop takes as constants.

    Where one of them differs later, the loop has to be traced anew. A learning rate in
    a variable is read per batch, a schedule is one of the constants.

    Args:
        optimizer: the SGDPlus.
        with_numbers: whether numbers of the rule are constants, too. Else only whether
            they are above zero counts.
    """
    names = (*_OF_THE_LOOP, *rule.settings())
    values = (getattr(optimizer, name) for name in names)
    numbers = [getattr(optimizer, n.setting) for n in rule.all_numbers()]
    fixed = numbers if with_numbers else map(switch, numbers)
    return (keras_optimizer.schedule(optimizer), *values, *fixed)
