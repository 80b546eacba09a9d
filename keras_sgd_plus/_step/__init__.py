"""One batch: check it, build the model, choose XLA or not, walk it, commit the result.

`batch` is the order of these steps, `walk_batch` walks one batch, `compiled` makes the
choice about XLA. `warn` gives each warning once.
"""

from keras_sgd_plus._step.batch import run
from keras_sgd_plus._step.compiled import raise_small_loop_threshold
from keras_sgd_plus._step.numbers import refresh as refresh_numbers
from keras_sgd_plus._step.order import derived_seed, visiting_order

__all__ = [
    "derived_seed",
    "raise_small_loop_threshold",
    "refresh_numbers",
    "run",
    "visiting_order",
]
